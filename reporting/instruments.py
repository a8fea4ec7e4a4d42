"""What a run measures of itself: the matmul rate that the device reaches, and where the time of a step
goes."""

import re
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from base.errors import InputError
from hardware.device import device_name, wait_for
from hardware.gpus import peak_flops_per_s

CATEGORIES: tuple[tuple[str, str], ...] = (  # the first pattern that an operator's or a kernel's name holds
    ("attention", r"flex_attention|flash|fmha"),
    ("fused by the compiler", r"CompiledFxGraph|triton_|cpp_fused"),
    ("optimizer", r"adam|muon|foreach|multi_tensor|zeropower"),
    ("communication", r"nccl|all_reduce|allreduce|all_gather|reduce_scatter|broadcast|c10d|gloo"),
    ("attention", r"attention|attn|bmm"),
    ("matmul", r"::mm|::addmm|::linear|::matmul|_linear_pointwise|gemm|cutlass|nvjet|cublas|wgrad"),
    ("loss", r"softmax|logsumexp|nll_loss|cross_entropy|gather|scatter"),
    ("norm", r"norm|rsqrt|::pow|::mean"),
    ("copies and casts", r"copy|memcpy|memset|::cat|contiguous|::clone|embedding|index"),
    ("fills", r"fill|zero|::(full|ones)"),
    (
        "elementwise",
        r"::(mul|add|sub|div|neg|silu|gelu|relu|exp|log|sigmoid|tanh|where|masked|sum|amax|max|dropout|bernoulli)",
    ),
    (
        "elementwise",
        r"elementwise|reduce_kernel|vectorized|sqrt|reciprocal|clamp|abs|lerp|isfinite|bitwise|::(eq|ne|lt|le|gt|ge)$",
    ),
    (
        "framework",
        r"autograd|Torch|Backward|Compiled|AOT|bytecode|detach|^Optimizer|aten::(to|view|t|transpose|item)$",
    ),
    (
        "framework",
        r"as_strided|empty|reshape|expand|permute|slice|select|split|unbind|squeeze|narrow|alias|flatten|result_type|_local",
    ),
)


def category(name: str) -> str:
    """Of an operator on CPU or a kernel on CUDA; `other` where no pattern fits."""
    return next((kind for kind, pattern in CATEGORIES if re.search(pattern, name, re.IGNORECASE)), "other")


class StepProfile:
    """Records `steps` training steps of this process after WARMUP others, then writes trace.json
    (chrome://tracing), table.txt and on CUDA memory_snapshot (pytorch.org/memory_viz) to `folder`. Steps
    are as long as without it, but for some per cent."""

    WARMUP = 3  # compilation, autotuning, the allocator's first blocks

    def __init__(self, steps: int, folder: Path, device: torch.device) -> None:
        self.steps, self.folder, self.device = steps, folder, device
        self._seen = 0
        self._profiler: torch.profiler.profile | None = None
        self._started = 0.0
        if steps and device.type == "cpu":
            import torch._inductor.config as inductor  # a compiler's kernels by name, not as one sum

            inductor.cpp.enable_kernel_profile = True

    def step(self) -> str | None:
        """To be called after every step. The table, once: after the last step that was recorded."""
        self._seen += 1
        if not self.steps or self._seen > self.WARMUP + self.steps:
            return None
        if self._seen == self.WARMUP:
            self._start()
        if self._seen < self.WARMUP + self.steps:
            return None
        return self._finish()

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=200_000)
            wait_for(self.device)
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.__enter__()
        self._started = time.perf_counter()

    def _finish(self) -> str:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            wait_for(self.device)
        wall_ms = 1e3 * (time.perf_counter() - self._started) / self.steps
        self._profiler.__exit__(None, None, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / "trace.json"))
        if on_gpu:
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory_snapshot"))
            torch.cuda.memory._record_memory_history(enabled=None)
        kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
        field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        averages = [event for event in self._profiler.key_averages() if event.device_type == kind]
        times_ms = {event.key: getattr(event, field) / 1e3 / self.steps for event in averages}
        self._profiler = None
        table = time_table(times_ms, wall_ms, self.steps)
        (self.folder / "table.txt").write_text(table + "\n")
        return f"{table}\ntrace, table{' and memory snapshot' if on_gpu else ''} in {self.folder}"


def time_table(times_ms: dict[str, float], wall_ms: float, steps: int) -> str:
    """Milliseconds a step by category, and under each the operators above 2 % of the step; what is in no
    operator (Python, waiting, data) is the last line."""
    kinds: dict[str, dict[str, float]] = defaultdict(dict)
    for name, ms in times_ms.items():
        kinds[category(name)][name] = ms
    lines = [f"profile of {steps} steps, {wall_ms:,.1f} ms each"]
    for kind, members in sorted(kinds.items(), key=lambda item: -sum(item[1].values())):
        total = sum(members.values())
        lines.append(f"{kind:22} {total:9.2f} ms {total / wall_ms:6.1%}")
        for name, ms in sorted(members.items(), key=lambda item: -item[1]):
            if ms > 0.02 * wall_ms:
                lines.append(f"    {name[:60]:60} {ms:9.2f} ms {ms / wall_ms:6.1%}")
    rest = wall_ms - sum(times_ms.values())
    lines.append(f"{'outside operators':22} {rest:9.2f} ms {rest / wall_ms:6.1%}")
    return "\n".join(lines)


def check_profile(steps: int, steps_left: int) -> None:
    """Raises InputError where a run of so many steps cannot give such a profile."""
    if steps and steps_left < StepProfile.WARMUP + steps:
        needed = StepProfile.WARMUP + steps
        raise InputError(
            f"profile={steps} needs {needed} steps, this run makes {max(0, steps_left)}: raise max_iters"
        )


def hardware(device: torch.device, dtype: torch.dtype, fp8: bool = False) -> dict[str, Any]:
    """What a run log says about the device: FLOP/s are those of the data sheet in the type that multiplies, None for
    an unknown GPU."""
    name, kind = device_name(device), str(dtype).removeprefix("torch.")
    return {
        "device": device.type,
        "device_name": name,
        "dtype": kind,
        "peak_flops_per_s": peak_flops_per_s(name, kind, fp8),
    }


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process. A number that grows in mid-run is a
    recompilation."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # where nothing was compiled it need not be there
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
