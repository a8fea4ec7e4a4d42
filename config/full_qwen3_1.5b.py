"""Qwen3 at 1.5 B: twice as wide.

    python train.py config/full_qwen3_1.5b.py
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_1.5b.py --use_zero1=True

1,720,574,976 parameters, those of the official Qwen3-1.7B (1,409,410,048 without embeddings); 393,216 tokens a step.
"""

arch_preset = "qwen3"
n_layer = 28
n_head = 16
n_embd = 2048
num_key_value_heads = 8  # 2:1 GQA
head_dim = 128  # its own number in Qwen3
d_ff = 6144  # 3 * 2,048
block_size = 2048
vocab_size = 151936
rope_theta = 1_000_000
weight_tying = True  # as the official models of this size; the preset does not tie
dropout = 0.0
bias = False

# 393,216 tokens a step = 6 sequences * 32 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_qwen3"
batch_size = 6
gradient_accumulation_steps = 32
max_iters = 25000  # 9.8 B tokens

learning_rate = 3e-4
min_lr = 3e-5
warmup_iters = 2000
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95
grad_clip = 1.0

dtype = "bfloat16"
compile = True
use_zero1 = True  # no effect in one process

out_dir = "out-qwen3-1.5b"
eval_interval = 1000
log_interval = 10
