"""Qwen3-0.6B, the official shape.

    python train.py config/full_qwen3_0.6b.py
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_0.6b.py --use_zero1=True

596,049,920 parameters, those of the official Qwen3-0.6B; 262,144 tokens a step.
"""

arch_preset = "qwen3"
n_layer = 28
n_head = 16
n_embd = 1024
num_key_value_heads = 8  # 2:1 GQA
head_dim = 128  # its own number in Qwen3
d_ff = 3072  # 3 * 1,024
block_size = 2048
vocab_size = 151936
rope_theta = 1_000_000
weight_tying = True  # as the official models of this size; the preset does not tie
dropout = 0.0
bias = False

# 262,144 tokens a step = 8 sequences * 16 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_qwen3"
batch_size = 8
gradient_accumulation_steps = 16
max_iters = 25000  # 6.6 B tokens

learning_rate = 3e-4
min_lr = 3e-5
warmup_iters = 2000
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95
grad_clip = 1.0

dtype = "bfloat16"
compile = True
use_zero1 = True  # no effect in one process

out_dir = "out-qwen3-0.6b"
eval_interval = 1000
log_interval = 10
