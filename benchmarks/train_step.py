"""A training step of ours beside transformers' Qwen3ForCausalLM: same process, shape, weights, data and dtype, taken in turn.

    python benchmarks/train_step.py                      # the CPU comparison; writes benchmarks/results/train_step_cpu.json
    python benchmarks/train_step.py --steps=3 --n_layer=2 --n_embd=64 --vocab_size=512 --write=False     # a smoke test

A step is forward, backward, AdamW (fused) and zero_grad, under bf16 autocast with fp32 weights. Both models start from the
same weights; their losses must agree before anything is timed. Both run under the same allocator setting.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import get_type_hints

import torch

from inference.hf import load_hf
from training import dist, metrics
from training.config import parse_flags, user_errors

RESULTS = Path(__file__).parent / "results"


@dataclass(kw_only=True)
class BenchmarkConfig:
    """The shape is that of issue and facts: 6 layers, 384 wide, 6:3 heads of 64."""

    n_layer: int = 6
    n_embd: int = 384
    n_head: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 64
    d_ff: int = 1152
    vocab_size: int = 8192
    batch_size: int = 8
    block_size: int = 256
    device: str = "auto"
    steps: int = 15  # timed, of each model and mode
    warmup: int = 3
    write: bool = True


def twins(c: BenchmarkConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """transformers' model with random weights, and ours with the same."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=c.vocab_size,
            hidden_size=c.n_embd,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head,
            num_key_value_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            max_position_embeddings=c.block_size,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_hf(folder)
    return ours, theirs


def make_step(
    model: torch.nn.Module, loss_of: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor, compiled: bool
) -> Callable[[], float]:
    device = x.device
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if compiled:
        model.compile(dynamic=False)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def main(argv: Sequence[str]) -> int:
    with user_errors():
        words, flags = parse_flags(argv, get_type_hints(BenchmarkConfig))
        if words:
            raise ValueError(f"{words[0]!r} is no flag")
        c = BenchmarkConfig(**flags)
        device = dist.select_device(c.device)
    dist.keep_freed_memory()  # one setting for both
    ids = torch.randint(c.vocab_size, (c.batch_size, c.block_size + 1), generator=torch.Generator().manual_seed(1))
    x, y = ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)

    def our_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return model(x, y)[1]

    def their_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return model(input_ids=x, labels=y, shift_labels=y).loss  # shift_labels: already shifted, as ours are

    rows = {}
    for mode in ("eager", "compiled"):
        torch.compiler.reset()
        ours, theirs = twins(c)
        steps = {
            "nanofoundry": make_step(ours, our_loss, x, y, mode == "compiled"),
            "transformers": make_step(theirs, their_loss, x, y, mode == "compiled"),
        }
        losses = {name: [step() for _ in range(c.warmup)] for name, step in steps.items()}
        for a, b in zip(*losses.values(), strict=True):
            assert abs(a - b) < 2e-2, f"the models do not compute the same loss: {losses}"
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(c.steps):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        tokens = c.batch_size * c.block_size
        for name in steps:
            rows[f"{name} {mode}"] = tokens / statistics.median(times[name])
        ratios = [b / a for a, b in zip(times["nanofoundry"], times["transformers"], strict=True)]
        rows[f"ratio {mode}"] = statistics.median(ratios)
        print(
            f"{mode:9} nanofoundry {rows[f'nanofoundry {mode}']:8,.0f} tokens/s, transformers "
            f"{rows[f'transformers {mode}']:8,.0f}; ratio, median of pairs {rows[f'ratio {mode}']:.2f}; "
            f"losses {losses['nanofoundry'][-1]:.4f} and {losses['transformers'][-1]:.4f}",
            flush=True,
        )
    if c.write:
        import transformers

        result = {
            "command": "python benchmarks/train_step.py " + " ".join(argv),
            "unit": "tokens/s, median",
            "config": asdict(c),
            "results": rows,
            "device": dist.device_name(device),
            "versions": metrics.versions() | {"transformers": transformers.__version__},
            "git": metrics.git_state(),
        }
        file = RESULTS / f"train_step_{device.type}.json"
        file.write_text(json.dumps(result, indent=2) + "\n")
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
