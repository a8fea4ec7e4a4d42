"""Qwen3 at 124 M: one of four of equal depth, width and size (within 1 %), to compare on equal tokens.

    python train.py config/full_qwen3_124m.py
    torchrun --standalone --nproc_per_node=8 train.py config/full_qwen3_124m.py
    python compare_architectures.py --latest 4

123,552,768 parameters; 491,520 tokens a step.
"""

arch_preset = "qwen3"
n_layer = 12
n_head = 12
n_embd = 768  # d_ff = 3 * 768 = 2,304
num_key_value_heads = 6  # 2:1 GQA
head_dim = 64
block_size = 1024
vocab_size = 50257
weight_tying = True

# 491,520 tokens a step = 12 sequences * 40 micro-batches * 1,024 tokens
dataset = "slimpajama_6b_gpt2"
batch_size = 12
gradient_accumulation_steps = 40
max_iters = 12000  # 5.9 B tokens, about one epoch

learning_rate = 6e-4
warmup_iters = 700

dtype = "bfloat16"
use_zero1 = True  # no effect in one process

out_dir = "out-qwen3-124m"
eval_interval = 500
