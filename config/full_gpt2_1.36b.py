"""GPT-2 at 1.3 B, without biases.

    python train.py config/full_gpt2_1.36b.py
    torchrun --standalone --nproc_per_node=8 train.py config/full_gpt2_1.36b.py

1,267,213,824 parameters; 262,144 tokens a step.
"""

arch_preset = "gpt2"
n_layer = 18
n_head = 18
n_embd = 2304  # d_ff = 4 * 2,304 = 9,216
block_size = 2048
bias = False  # LayerNorm's too

# 262,144 tokens a step = 8 sequences * 16 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_gpt2"
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 25000  # 6.6 B tokens

learning_rate = 3e-4
min_lr = 3e-5

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-gpt2-1.36b"
eval_interval = 1000
