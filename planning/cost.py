"""The device, what a run reached on it, and what time and money a plan costs."""

from dataclasses import replace
from statistics import median

from analysis.runs import read_runs
from analysis.selection import find_runs
from base.errors import InputError
from hardware.gpus import GPU, find_gpu, unknown_gpu
from planning.fit import CHECKPOINTING
from planning.options import PlanOptions


def device_of(o: PlanOptions) -> tuple[GPU, float]:
    """The GPU, with what the flags say of it, and its peak in FLOP/s. Raises InputError where neither table
    nor flags know."""
    gpu = find_gpu(o.gpu) if o.gpu else None
    if gpu is None:
        if o.peak_tflops is None or o.memory_gb is None:
            raise InputError(
                unknown_gpu(o.gpu) if o.gpu else "which GPU? --gpu=H100, or --peak_tflops=… --memory_gb=…"
            )
        gpu = GPU(o.gpu or "GPU", "", None, o.memory_gb, None)
    gpu = replace(gpu, memory_gb=o.memory_gb or gpu.memory_gb, power_w=o.power_w or gpu.power_w)
    return gpu, 1e12 * o.peak_tflops if o.peak_tflops else gpu.peak_flops_per_s


def measured_mfu(path: str, stated_tflops: float | None) -> tuple[float, str]:
    """The MFU of a run's median step, against the peak of its own device, or the stated one where that is
    unknown, as it would be without the run's recomputation, if it had any. Raises InputError."""
    run = read_runs(find_runs([path], None)[0])[-1]
    rates = [event["tokens_per_s"] for event in run.trains if event.get("tokens_per_s")]
    if len(rates) < 3:
        raise InputError(f"--measured={path}: {len(rates)} steps were logged; at least 3 are needed")
    hardware = run.start.get("hardware") or {}
    n, peak = hardware.get("world_size"), hardware.get("peak_flops_per_s") or 1e12 * (stated_tflops or 0)
    if not n:
        raise InputError(f"--measured={path}: its run_start does not say on how many GPUs: state --mfu")
    if not peak:
        device = hardware.get("device_name")
        raise InputError(
            f"--measured={path}: the peak of {device} is unknown: state --mfu, or that peak with --peak_tflops"
        )
    recomputed = CHECKPOINTING.get(run.start["config"]["train"].get("activation_checkpointing"), 1.0)
    mfu = recomputed * median(rates) * run.start["model"]["flops_per_token"] / (peak * n)
    return mfu, f"the median of {len(rates)} logged steps on {n} x {hardware.get('device_name')}"


def cost(
    tokens: float, flops_per_token: float, mfu: float, peak: float, gpu: GPU, o: PlanOptions
) -> dict[str, float | None]:
    """At `mfu`, in which FLOPs that are recomputed do not count."""
    tokens_per_s = o.gpus * peak * mfu / flops_per_token
    hours = tokens / tokens_per_s / 3600
    kwh = None if gpu.power_w is None else o.gpus * gpu.power_w * hours / 1e3
    rates = [(o.price_per_gpu_hour, o.gpus * hours), (o.price_per_kwh, kwh)]
    prices = [rate * amount for rate, amount in rates if rate is not None and amount is not None]
    return {"mfu": mfu, "tokens_per_s": tokens_per_s, "days": hours / 24, "gpu_hours": hours * o.gpus,
            "kwh_at_most": kwh, "price": sum(prices) if prices else None}  # fmt: skip
