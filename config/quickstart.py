"""A small Qwen3 on the source text of Python's standard library: minutes on two CPU cores.

python train.py config/quickstart.py
"""

arch_preset = "qwen3"
n_layer = 6
n_head = 6
n_embd = 256
num_key_value_heads = 3
head_dim = 64
d_ff = 768
block_size = 256
vocab_size = 4096
weight_tying = True
dropout = 0.0

dataset = "python_stdlib"
batch_size = 8
gradient_accumulation_steps = 1
max_iters = 300

optimizer = "muon"
learning_rate = 3e-3
min_lr = 3e-4
warmup_iters = 20
weight_decay = 0.1
compile = False

out_dir = "out-quickstart"
eval_interval = 100
eval_iters = 20
log_interval = 10
