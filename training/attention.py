"""Which attention kernel is the fastest on a GPU: measured once, before the run, on the run's own shape.

    kernel, ms = choose_kernel(model_config, config, device, dtype, world)      # "cudnn", {"cudnn": 1.2, "sdpa": 2.3, …}

Which one wins differs between generations of GPUs and versions: cuDNN's is far ahead of FlashAttention 2 on
Hopper and behind on A100, and what torch takes by itself ("sdpa") has changed. Rank 0 measures and all
follow; a checkpoint keeps the choice, so that a resumed run computes the same bits. On CPU the choice is a
table (operators.attention.choose_backend). flex_attention is not among the candidates: for a mask that is
merely causal its generated kernel is FlashAttention's schedule once more; with document_masking=True it
runs, and nothing is chosen."""

import contextlib
import json
from collections.abc import Callable, Iterable

import torch
import torch.utils.benchmark
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from model_components import softmax_attention
from model_config import ModelArchitectureConfig
from operators.attention import ATTENTION_BACKENDS, PREFERRED_KERNELS, attend_sdpa, backend_problem
from training.config import TrainConfig
from training.world import World

CANDIDATES = ("sdpa", "flash", "cudnn", "efficient", "flash_attn_2", "flash_attn_3", "flash_attn_4")
CHECKED_TOKENS = 512  # of one sequence, against attention written out in fp32


def choose_kernel(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
    saved: str | None = None,
) -> tuple[str, dict[str, float | str]]:
    """The attention_backend that a run uses, and the ms of a forward and backward pass (or why there is
    none) of each that was tried: what the configuration names; for `auto` on CUDA `saved`, if it can run on
    every rank, or the fastest; elsewhere `auto`."""
    c = model_config
    if c.attention_backend != "auto" or device.type != "cuda" or config.document_masking:
        return c.attention_backend, {}
    if saved in CANDIDATES and world.first(backend_problem(saved, device.type, dtype, c.dropout)) is None:
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
    """shape (B, H, K, T, D) -> median ms of a forward and backward pass of each candidate, or why it cannot
    run: one whose output or gradients are not attention's cannot, and one of torch's kernels in whose place
    torch would take another."""
    B, H, K, T, D = shape
    generator = torch.Generator(device).manual_seed(0)
    random = lambda *size: torch.randn(size, generator=generator, device=device).to(dtype)  # noqa: E731
    # [B, T, heads, D] in memory, as they come out of the projection
    q, k, v = (random(B, T, heads, D).transpose(1, 2).requires_grad_() for heads in (H, K, K))
    grad = random(B, H, T, D)
    results: dict[str, float | str] = {}
    for name in candidates:
        only = sdpa_kernel(PREFERRED_KERNELS[name]) if name in PREFERRED_KERNELS else contextlib.nullcontext()
        attend = attend_sdpa if name in PREFERRED_KERNELS else ATTENTION_BACKENDS[name]
        step = lambda: torch.autograd.grad(attend(q, k, v, dropout), (q, k, v), grad)  # noqa: B023, E731
        problem = backend_problem(name, device.type, dtype, dropout)
        try:
            with only:
                problem = problem or wrong_results(attend, q, k, v, grad)
                if problem is None and not all(g.isfinite().all() for g in step()):
                    problem = "its gradients are not finite"
                if problem is None:
                    threads = torch.get_num_threads()
                    timer = torch.utils.benchmark.Timer("step()", globals={"step": step}, num_threads=threads)
                    results[name] = 1e3 * timer.blocked_autorange(min_run_time=seconds).median
        except Exception as error:  # whatever a kernel does with a shape or a GPU that it does not know
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if problem:
            results[name] = problem
    if device.type == "cuda":  # the run's peak of memory is not that of this
        del q, k, v, grad
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return results


def wrong_results(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> str | None:
    """Output and gradients of the first tokens of one sequence beside those of attention written out in
    fp32."""
    inputs = [t[:1, :, :CHECKED_TOKENS].detach() for t in (q, k, v)]
    grad = grad[:1, :, :CHECKED_TOKENS]
    plain = lambda q, k, v, dropout: softmax_attention(q, k, v)  # noqa: E731
    found = []
    for function, dtype in ((attend, q.dtype), (plain, torch.float32)):
        own = [t.to(dtype).requires_grad_() for t in inputs]
        out = function(*own, 0.0)
        found.append([out, *torch.autograd.grad(out, own, grad.to(dtype))])
    for name, got, expected in zip(("output", "dq", "dk", "dv"), *found, strict=True):
        error = ((got.float() - expected).norm() / expected.norm()).item()
        if not error < 0.05:
            return f"its {name} is wrong by {error:.2g}"
    return None
