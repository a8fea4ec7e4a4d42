"""Qwen3-0.6B, the official shape.

    python train.py config/full_qwen3_0.6b.py
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_0.6b.py

596,049,920 parameters, those of the official Qwen3-0.6B; 262,144 tokens a step.
"""

arch_preset = "qwen3"
n_layer = 28
n_head = 16
n_embd = 1024
# From the preset: 8 heads for keys and values (2:1 GQA),
# all heads of 128, d_ff = 3 * 1,024 = 3,072, 151,936 tokens
block_size = 2048
weight_tying = True  # as the official models of this size; the preset does not tie

# 262,144 tokens a step = 8 sequences * 16 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_qwen3"
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 25000  # 6.6 B tokens

learning_rate = 3e-4
min_lr = 3e-5

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-qwen3-0.6b"
eval_interval = 1000
