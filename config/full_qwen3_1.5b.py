"""Qwen3 at 1.5 B: twice as wide.

    python train.py config/full_qwen3_1.5b.py
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_1.5b.py

1,720,574,976 parameters, those of the official Qwen3-1.7B (1,409,410,048 without embeddings);
393,216 tokens a step.
"""

arch_preset = "qwen3"
n_layer = 28
n_head = 16
n_embd = 2048
# From the preset: 8 heads for keys and values (2:1 GQA),
# all heads of 128, d_ff = 3 * 2,048 = 6,144, 151,936 tokens
block_size = 2048
weight_tying = True  # as the official models of this size; the preset does not tie

# 393,216 tokens a step = 6 sequences * 32 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_qwen3"
batch_size = 6
gradient_accumulation_steps = 32
max_iters = 25000  # 9.8 B tokens

learning_rate = 3e-4
min_lr = 3e-5

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-qwen3-1.5b"
eval_interval = 1000
