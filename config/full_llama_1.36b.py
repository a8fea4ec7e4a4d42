"""LLaMA 2 at 1.3 B.

    python train.py config/full_llama_1.36b.py
    torchrun --standalone --nproc_per_node=8 train.py config/full_llama_1.36b.py

1,294,159,104 parameters; 262,144 tokens a step.
"""

arch_preset = "llama2"
n_layer = 18
n_head = 18
n_embd = 2304
d_ff = 6144  # 8/3 * 2,304; the preset has 2.69
block_size = 2048

# 262,144 tokens a step = 8 sequences * 16 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_llama"
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 25000  # 6.6 B tokens

learning_rate = 3e-4
min_lr = 3e-5

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-llama-1.36b"
eval_interval = 1000
