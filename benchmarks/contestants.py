"""One side of benchmarks/train_step.py in a process of its own, which makes a training step for every line
on its stdin and answers with a line of JSON. Weights of all Qwen3 shapes come from one folder, so that the
losses must agree.

A step is forward, backward, AdamW (torch's fused one, for every side) and zero_grad, on fp32 weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gc
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hardware.device import keep_freed_memory

Loss = Callable[[Tensor, Tensor], Tensor]


def nanofoundry(shape: dict[str, Any], folder: str) -> tuple[nn.Module, Loss]:
    from inference.hf import load_hf

    keep_freed_memory()  # as train.py does
    model = load_hf(folder)
    return model, lambda x, y: model(x, y)[1]


def hf(shape: dict[str, Any], folder: str) -> tuple[nn.Module, Loss]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", use_cache=False)
    return (
        model,
        lambda x, y: model(input_ids=x, labels=y, shift_labels=y).loss,
    )  # shift_labels: already shifted


def nanogpt_shape(shape: dict[str, Any], folder: str) -> tuple[nn.Module, Loss]:
    """transformers' GPT-2, which is as fast as nanoGPT's own file: learned positions, LayerNorm, GELU, as
    many weights a block (a third more d_ff for two matrices in place of three, no GQA). Its weights and
    loss are its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape["vocab_size"],
        n_positions=shape["block_size"],
        n_embd=shape["n_embd"],
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config)
    return model, lambda x, y: model(input_ids=x, labels=y, shift_labels=y).loss


def litgpt(shape: dict[str, Any], folder: str) -> tuple[nn.Module, Loss]:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    config = Config.from_name(
        "Qwen3-0.6B",
        n_layer=shape["n_layer"],
        n_embd=shape["n_embd"],
        n_head=shape["n_head"],
        n_query_groups=shape["num_key_value_heads"],
        head_size=shape["head_dim"],
        intermediate_size=shape["d_ff"],
        block_size=shape["block_size"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
    )
    model = GPT(config)
    state: dict[str, Tensor] = {}
    copy_weights_qwen_3(config, {}, state, load_file(f"{folder}/model.safetensors"))
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state)
    model.lm_head.weight = model.transformer.wte.weight  # its train.tie_embeddings
    return model, lambda x, y: chunked_cross_entropy(model(x), y)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CONTESTANTS = {f.__name__: f for f in (nanofoundry, hf, nanogpt_shape, litgpt)}


def memory_bytes(field: str) -> int:
    """VmRSS, or VmHWM: the highest since reset_peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def serve(name: str, shape: dict[str, Any], folder: str, mode: str, clock: str) -> None:
    """mode: 'bf16 compiled', 'fp32 eager' and so on. Memory is the peak of a step above the process before
    the model, less weights, gradients and AdamW's two moments, 16 bytes a parameter."""
    precision, how = mode.split()
    now = CLOCKS[clock]
    if clock == "cpu":
        torch.set_num_threads(1)  # a second thread that waits would count as work
    torch.manual_seed(0)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the threads and their buffers are there
    ids = torch.randint(
        shape["vocab_size"],
        (shape["batch_size"], shape["block_size"] + 1),
        generator=torch.Generator().manual_seed(1),
    )
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    model, loss_of = CONTESTANTS[name](shape, folder)
    model.float().train()
    gc.collect()
    params = sum(p.numel() for p in model.parameters())
    baseline = memory_bytes("VmRSS") - 4 * params
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if how == "compiled":
        model.compile(dynamic=False)
    for _ in sys.stdin:
        start = now()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        elapsed = now() - start
        answer = {"s": elapsed, "loss": loss.item(), "params": params}
        answer["extra_bytes"] = memory_bytes("VmHWM") - baseline - 16 * params
        Path("/proc/self/clear_refs").write_text("5")  # the next peak is that of the next step alone
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    name, shape, folder, mode, clock = sys.argv[1:]
    serve(name, json.loads(shape), folder, mode, clock)
