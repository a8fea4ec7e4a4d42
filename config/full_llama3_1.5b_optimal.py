"""LLaMA 3 at 1.5 B.

    python train.py config/full_llama3_1.5b_optimal.py
    torchrun --standalone --nproc_per_node=8 train.py config/full_llama3_1.5b_optimal.py

1,544,628,224 parameters; 262,144 tokens a step.
"""

arch_preset = "llama3"
n_layer = 18
n_head = 16
n_embd = 2048
# From the preset: 8 heads for keys and values (2:1 GQA),
# d_ff = 3.5 * 2,048 = 7,168, its vocabulary of 128,256
block_size = 2048

# 262,144 tokens a step = 8 sequences * 16 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_llama3"
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 25000  # 6.6 B tokens

learning_rate = 3e-4
min_lr = 3e-5

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-llama3-1.5b-optimal"
eval_interval = 1000
