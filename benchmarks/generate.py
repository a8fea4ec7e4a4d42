"""Generation of ours beside transformers' `generate`: same process, weights, prompts, dtype and allocator,
taken in turn.

    python benchmarks/generate.py                      # writes benchmarks/results/generate_cpu_8192.json
    python benchmarks/generate.py --vocab_size=151936
    python benchmarks/generate.py --n_layer=2 --n_embd=64 --n_head=2 --num_key_value_heads=1 --d_ff=128 --vocab_size=512 \
        --max_new_tokens=8 --rounds=1 --write=False          # a smoke test

Greedy, bfloat16, random weights. transformers runs in two settings, its default (dynamic cache, eager) and
its compiled one (static cache, forward compiled with the weights frozen, as ours is); the faster of the two
is what ours is compared with. Before anything is timed both must give the same tokens in float32. Decoding
is all of a call, prompt included; prefill is a call that makes one token of a long prompt. Compilation
happens in a call before, whose seconds are reported. """

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from base.errors import require
from base.fields import knob
from benchmarks import records
from benchmarks.records import write_result
from hardware.device import keep_freed_memory, select_device
from inference.generate import generate
from inference.hf import load_hf, save_hf
from inference.sampling import Sampling
from model_builder import ConfigurableGPT
from model_config import get_preset_config


@dataclass(kw_only=True)
class BenchmarkConfig(records.ModelShape):
    batch_sizes: str = knob("1,8", "rows, separated by commas")
    prompt_tokens: int = knob(32, "of the decoding comparison", bounds="[1, inf)")
    max_new_tokens: int = knob(256, "decoded in a round", bounds="[1, inf)")
    prefill_tokens: int = knob(512, "of the prefill comparison", bounds="[1, inf)")
    device: str = knob("cpu", "auto, cpu, cuda, cuda:N or mps")
    rounds: int = knob(5, "that the medians are taken over", bounds="[1, inf)")
    write: bool = knob(True, "store the result under benchmarks/results/")


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    device = select_device(c.device)
    batch_sizes = records.numbers("batch_sizes", c.batch_sizes)
    transformers = require("transformers", "the rival of this benchmark")
    transformers.logging.set_verbosity_error()
    keep_freed_memory()
    results: dict[str, Any] = {}
    for B in batch_sizes:
        torch.compiler.reset()
        key = f"vocabulary {c.vocab_size}, batch {B}"
        results[key] = r = compare(c, B, device)
        print(
            f"{key}: decode {r['decode tokens/s']}, ratio {r['decode ratio']:.2f}; "
            f"prefill ms {r['prefill ms']}, ratio {r['prefill ratio']:.2f}; first call s {r['first call s']}",
            flush=True,
        )
    if c.write:
        unit = "medians; decode tokens/s over the whole batch; ratios of medians, ours over the faster transformers"
        name = f"generate_{device.type}_{c.vocab_size}"
        write_result(name, "generate.py", argv, device, unit=unit, config=asdict(c), results=results)


@dataclass
class Models:
    """The same weights on both sides, in float32 for a check, then in bfloat16."""

    exact: ConfigurableGPT
    exact_theirs: Any
    ours: ConfigurableGPT
    theirs: Any
    theirs_compiled: Any


def build_models(c: BenchmarkConfig, device: torch.device) -> Models:
    from transformers import AutoModelForCausalLM

    names = ("n_layer", "n_embd", "n_head", "num_key_value_heads", "head_dim", "d_ff", "vocab_size")
    longest = max(c.prompt_tokens + c.max_new_tokens, c.prefill_tokens + 1)
    shape = {name: getattr(c, name) for name in names} | {"block_size": longest, "weight_tying": True}
    with tempfile.TemporaryDirectory() as folder:
        save_hf(ConfigurableGPT(get_preset_config("qwen3", **shape), seed=0), folder)
        exact, exact_theirs = load_hf(folder), AutoModelForCausalLM.from_pretrained(folder)
        ours = load_hf(folder, device=device, dtype=torch.bfloat16)
        theirs, compiled = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device) for _ in range(2)
        )
    compiled.forward = torch.compile(compiled.forward, dynamic=False)
    return Models(exact, exact_theirs, ours, theirs, compiled)


def our_call(model: ConfigurableGPT, ids: torch.Tensor, n: int, compiled: bool = True) -> list[list[int]]:
    return [x.ids for x in generate(model, ids.tolist(), n, Sampling(temperature=0), compiled=compiled)]


def their_call(model: Any, ids: torch.Tensor, n: int, **options: str) -> list[list[int]]:
    ids = ids.to(model.device)
    lengths = {"max_new_tokens": n, "min_new_tokens": n}
    with torch._inductor.config.patch(freezing=model.device.type == "cpu"):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths, **options)
    return out[:, ids.size(1) :].tolist()


def compare(c: BenchmarkConfig, B: int, device: torch.device) -> dict[str, Any]:
    """Rates, times and ratios at B prompts at a time."""
    m = build_models(c, device)
    generator = torch.Generator().manual_seed(1)
    prompts, long_prompts = (
        torch.randint(c.vocab_size, (B, n), generator=generator) for n in (c.prompt_tokens, c.prefill_tokens)
    )
    check = min(32, c.max_new_tokens)
    same = our_call(m.exact, prompts, check, compiled=False) == their_call(m.exact_theirs, prompts, check)
    assert same, "the two do not generate the same tokens in float32"
    del m.exact, m.exact_theirs

    n, static = c.max_new_tokens, {"cache_implementation": "static"}
    decode = {
        "nanofoundry": lambda: our_call(m.ours, prompts, n),
        "nanofoundry eager": lambda: our_call(m.ours, prompts, n, compiled=False),
        "transformers": lambda: their_call(m.theirs, prompts, n),
        "transformers compiled": lambda: their_call(m.theirs_compiled, prompts, n, **static),
    }
    prefill = {
        "nanofoundry": lambda: our_call(m.ours, long_prompts, 1, compiled=False),
        "transformers": lambda: their_call(m.theirs, long_prompts, 1),
    }
    first = {name: seconds(call) for name, call in decode.items()}
    decode_s, prefill_s = medians(decode, c.rounds), medians(prefill, 2 * c.rounds)
    tokens_per_s = {name: B * n / t for name, t in decode_s.items()}
    best = max(rate for name, rate in tokens_per_s.items() if name.startswith("transformers"))
    return {
        "decode tokens/s": {name: round(rate, 1) for name, rate in tokens_per_s.items()},
        "decode ratio": tokens_per_s["nanofoundry"] / best,
        "prefill ms": {name: round(t * 1e3, 2) for name, t in prefill_s.items()},
        "prefill ratio": prefill_s["transformers"] / prefill_s["nanofoundry"],
        "first call s": {name: round(t, 1) for name, t in first.items()},
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each call, one after the other in every round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(rounds + 1):
        for name, call in calls.items():
            t = seconds(call)
            if n:
                times[name].append(t)
    return {name: statistics.median(t) for name, t in times.items()}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
