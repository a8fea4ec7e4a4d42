"""LLaMA 3 8B, the official shape.

    python train.py config/full_llama3_8b.py
    torchrun --standalone --nproc_per_node=8 train.py config/full_llama3_8b.py --activation_checkpointing=full

8,030,261,248 parameters; 65,536 tokens a step.
"""

arch_preset = "llama3"
n_layer = 32
n_head = 32
n_embd = 4096
# From the preset: 8 heads for keys and values (4:1 GQA),
# d_ff = 3.5 * 4,096 = 14,336, its vocabulary of 128,256
block_size = 2048

# 65,536 tokens a step = 4 sequences * 8 micro-batches * 2,048 tokens
dataset = "slimpajama_6b_llama3"
batch_size = 4
gradient_accumulation_steps = 8
max_iters = 25000  # 1.6 B tokens

learning_rate = 3e-4
min_lr = 3e-5

dtype = "bfloat16"
use_fsdp = True  # weights, gradients and AdamW take 128 GB in fp32

out_dir = "out-llama3-8b"
eval_interval = 1000
