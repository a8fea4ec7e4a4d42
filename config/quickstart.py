"""A small Qwen3 on the source text of Python's standard library: under three minutes on two CPU cores.

    python train.py config/quickstart.py
    torchrun --standalone --nproc_per_node=2 train.py config/quickstart.py --use_zero1=True

4,590,336 parameters; 2,048 tokens a step.
"""

# Architecture: Qwen3's choices at a size that a laptop trains
arch_preset = "qwen3"
n_layer = 4
n_head = 6
n_embd = 256
num_key_value_heads = 3  # 2:1 GQA
head_dim = 64
d_ff = 768  # 3 * 256
block_size = 256
vocab_size = 4096
weight_tying = True

# 4 * 2 * 256 = 2,048 tokens a step, on one process or two; 400 steps are 0.8 M tokens, a third of an epoch
dataset = "python_stdlib"
batch_size = 4
gradient_accumulation_steps = 2
max_iters = 400

optimizer = "muon"  # docs/PERFORMANCE.md: AdamW is 0.28 bits per byte behind in the same time
learning_rate = 8e-3
min_lr = 0.0
lr_schedule = "linear"
warmup_iters = 20
weight_decay = 0.1

compile = False  # compiling would take longer than it saves

out_dir = "out-quickstart"
eval_interval = 100
eval_iters = 40
log_interval = 20
