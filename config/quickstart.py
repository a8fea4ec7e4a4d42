"""A small Qwen3 on the source text of Python's standard library: under three minutes on two CPU cores.

    python train.py config/quickstart.py
    torchrun --standalone --nproc_per_node=2 train.py config/quickstart.py --use_zero1=True

4,753,536 parameters; 3,072 tokens a step.
"""

# Architecture: Qwen3's choices at a size that a laptop trains
arch_preset = "qwen3"
n_layer = 3
n_head = 6
n_embd = 256  # d_ff = 3 * 256 = 768
num_key_value_heads = 3  # 2:1 GQA
head_dim = 64
block_size = 64  # docs/PERFORMANCE.md: in minutes, many short sequences teach more than few long ones
vocab_size = 4096
# Untied, as the preset: a lookup costs no FLOPs, so at as many parameters a token takes a fifth less than tied

# 24 * 2 * 64 = 3,072 tokens a step, on one process or two; 350 steps are 1.1 M tokens, 0.4 epochs
dataset = "python_stdlib"
batch_size = 24
gradient_accumulation_steps = 2
max_iters = 350

optimizer = "muon"  # docs/PERFORMANCE.md, "The quickstart"
learning_rate = 8e-3
min_lr = 0.0
lr_schedule = "linear"
warmup_iters = 10
weight_decay = 0.0

compile = False  # compiling would take longer than it saves

out_dir = "out-quickstart"
eval_interval = 70
eval_iters = 48
log_interval = 20
