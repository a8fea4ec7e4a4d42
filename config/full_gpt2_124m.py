"""GPT-2 at 124 M, without biases: one of four equal in depth, width and size (1 %).

    python train.py config/full_gpt2_124m.py
    torchrun --standalone --nproc_per_node=8 train.py config/full_gpt2_124m.py
    python compare_architectures.py --latest 4

124,337,664 parameters; 491,520 tokens a step.
"""

arch_preset = "gpt2"
n_layer = 12
n_head = 12
n_embd = 768  # d_ff = 4 * 768 = 3,072
block_size = 1024
bias = False

# 491,520 tokens a step = 12 sequences * 40 micro-batches * 1,024 tokens
dataset = "slimpajama_6b_gpt2"
batch_size = 12
gradient_accumulation_steps = 40
max_iters = 12000  # 5.9 B tokens, about one epoch

learning_rate = 6e-4
warmup_iters = 700

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-gpt2-124m"
eval_interval = 500
