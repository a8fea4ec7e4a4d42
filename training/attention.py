"""Which attention kernel is the fastest on a GPU: measured once, before the run, on the run's own shape.

    kernel, ms = choose_kernel(model_config, config, device, dtype, world)      # "cudnn", {"cudnn": 1.2, "sdpa": 2.3, …}

Which one wins differs between generations of GPUs: cuDNN's is twice as fast as torch's default on Hopper, and slower on A100.
Rank 0 measures and all follow; a checkpoint keeps the choice, so that a run which goes on computes the same bits. On CPU the
choice is a table (model_components.choose_backend). flex_attention is not among the candidates: for a mask that is merely
causal its generated kernel is FlashAttention's schedule once more; with document_masking=True it runs, and nothing is chosen.
"""

import json
from collections.abc import Callable, Iterable

import torch
import torch.utils.benchmark
from torch import Tensor

from model_components import ATTENTION_BACKENDS, attend_manual, backend_problem
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.dist import World

CANDIDATES = ("sdpa", "cudnn", "efficient", "flash_attn_2", "flash_attn_3", "flash_attn_4")


def choose_kernel(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
    saved: str | None = None,
) -> tuple[str, dict[str, float | str]]:
    """The attention_backend that a run uses, and the ms of a forward and backward pass (or why there is none) of each that was
    tried: what the configuration names; for `auto` on CUDA `saved`, if it can run here, or the fastest; elsewhere `auto`."""
    c = model_config
    if c.attention_backend != "auto" or device.type != "cuda" or config.document_masking:
        return c.attention_backend, {}
    if saved not in (None, "auto") and backend_problem(saved, device.type, dtype, c.dropout) is None:
        return saved, {}
    results: dict[str, float | str] = {}
    if world.rank == 0:
        shape = (config.batch_size, c.n_head, c.num_key_value_heads, c.block_size, c.head_dim)
        results = time_kernels(shape, device, dtype, c.dropout)
    results = json.loads(world.first(json.dumps(results) if world.rank == 0 else None))
    times = {name: ms for name, ms in results.items() if isinstance(ms, float)}
    return min(times, key=times.__getitem__, default="sdpa"), results


def time_kernels(
    shape: tuple[int, int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    dropout: float = 0.0,
    candidates: Iterable[str] = CANDIDATES,
    seconds: float = 0.2,
) -> dict[str, float | str]:
    """shape (B, H, K, T, D) -> median ms of a forward and backward pass of each candidate, or why it cannot run; one whose
    output is not attention's cannot."""
    B, H, K, T, D = shape
    generator = torch.Generator(device).manual_seed(0)
    random = lambda *size: torch.randn(size, generator=generator, device=device).to(dtype)  # noqa: E731
    # [B, T, heads, D] in memory, as they come out of the projection
    q, k, v = (random(B, T, heads, D).transpose(1, 2).requires_grad_() for heads in (H, K, K))
    grad = random(B, H, T, D)
    results: dict[str, float | str] = {}
    for name in candidates:
        problem = backend_problem(name, device.type, dtype, dropout)
        try:
            problem = problem or wrong_output(ATTENTION_BACKENDS[name], q, k, v)
            if problem is None:
                step = lambda: torch.autograd.grad(ATTENTION_BACKENDS[name](q, k, v, dropout), (q, k, v), grad)  # noqa: B023, E731
                timer = torch.utils.benchmark.Timer("step()", globals={"step": step})
                results[name] = 1e3 * timer.blocked_autorange(min_run_time=seconds).median
        except Exception as error:  # whatever a kernel does with a shape or a GPU that it does not know
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if problem:
            results[name] = problem
    return results


def wrong_output(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Compared with attention written out in fp32, on one sequence."""
    with torch.no_grad():
        q, k, v = q[:1], k[:1], v[:1]
        difference = (attend(q, k, v, 0.0).float() - attend_manual(q.float(), k.float(), v.float(), 0.0)).abs().max().item()
    return None if difference < 0.05 else f"its output is wrong by {difference:.2g}"
