"""Qwen3's choices at 1.35 M parameters, to compare on a CPU: one of four equal in depth, width and size (2 %).

    python train.py config/compare_tiny_qwen3.py
    python compare_architectures.py --run config/compare_tiny_*.py --seeds 3

1,348,992 parameters; 2,048 tokens a step.
"""

arch_preset = "qwen3"
n_layer = 4
n_head = 4
n_embd = 128
num_key_value_heads = 2  # 2:1 GQA; what it saves goes into d_ff
head_dim = 32
d_ff = 408
block_size = 256
vocab_size = 4096
weight_tying = True

# 8 * 256 = 2,048 tokens a step; 489 steps are 1.0 M tokens, two fifths of an epoch
dataset = "python_stdlib"
batch_size = 8
gradient_accumulation_steps = 1
max_iters = 489

# One for all four, tuned for none
learning_rate = 4e-3
min_lr = 4e-4
warmup_iters = 50

compile = False  # compiling would take longer than it saves

out_dir = "out-compare-tiny-qwen3"
eval_interval = 50
eval_iters = 20
checkpoint_interval = 250
