"""What training costs: the share of the peak that it reaches, hours, energy, price, disk."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from base.errors import InputError, MissingFile
from hardware.gpus import GPU
from planning.options import PlanOptions
from tokens.dataset import dataset_folder
from tokens.format import read_meta
from training.config import TrainConfig

SHOWN_MFU = (0.3, 0.4, 0.5)  # where none is stated or measured: a range, not a guess
# FLOPs done for each that counts, by activation_checkpointing: full runs the forward pass twice
RECOMPUTED = {"none": 1.0, "selective": 1.0, "full": 4 / 3}


def measured_mfu(
    start: Mapping[str, Any],
    trains: Sequence[Mapping[str, Any]],
    where: str,
    stated_peak: float | None,
) -> tuple[float, str]:
    """The MFU of a run's median step, and its source in words: against the peak of its own device, or
    `stated_peak` in FLOP/s where that is unknown, as it would be without the run's recomputation, if it had
    any. `start` and `trains` are events of its log. Raises InputError, which begins with `where`."""
    rates = [event["tokens_per_s"] for event in trains if is_positive(event.get("tokens_per_s"))]
    if len(rates) < 3:
        raise InputError(f"{where}: {len(rates)} steps were logged; at least 3 are needed")
    hardware = part(start, "hardware")
    n, peak = hardware.get("world_size"), hardware.get("peak_flops_per_s") or stated_peak
    work = part(start, "model").get("flops_per_token")
    device = hardware.get("device_name")
    if not is_positive(n):
        raise InputError(f"{where}: its run_start does not say on how many GPUs: state --mfu")
    if not is_positive(peak):
        raise InputError(
            f"{where}: the peak of {device} is unknown: state --mfu, or that peak with --peak_tflops"
        )
    if not is_positive(work):
        raise InputError(f"{where}: its run_start does not say the model's flops_per_token: state --mfu")
    mode = part(part(start, "config"), "train").get("activation_checkpointing")
    recomputed = RECOMPUTED.get(mode, 1.0) if isinstance(mode, str) else 1.0
    mfu = recomputed * median(rates) * work / (peak * n)
    return mfu, f"the median of {len(rates)} logged steps on {n} x {device}"


def is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e50


def part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """record[key], or nothing where the log has no object there."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def cost(
    tokens: float, flops_per_token: float, mfu: float, gpu: GPU, o: PlanOptions
) -> dict[str, float | None]:
    """At `mfu`, in which FLOPs that are recomputed do not count."""
    tokens_per_s = o.gpus * gpu.peak_flops_per_s * mfu / flops_per_token
    hours = tokens / tokens_per_s / 3600
    kwh = None if gpu.power_w is None else o.gpus * gpu.power_w * hours / 1e3
    rates = [(o.price_per_gpu_hour, o.gpus * hours), (o.price_per_kwh, kwh)]
    prices = [rate * amount for rate, amount in rates if rate is not None and amount is not None]
    return {
        "mfu": mfu,
        "tokens_per_s": tokens_per_s,
        "days": hours / 24,
        "gpu_hours": hours * o.gpus,
        "kwh_at_most": kwh,
        "price": sum(prices) if prices else None,
    }


def disk(
    train: TrainConfig, o: PlanOptions, params: int, matrices: int, tokens: float, data_root: Path
) -> dict[str, Any]:
    """A checkpoint holds fp32 weights and AdamW's two moments, or Muon's one of the blocks' matrices
    (training/saving.py); shards are uint32. The dataset is looked for below data_root."""
    one_moment = matrices if train.optimizer == "muon" else 0
    size_gb = 4 * (3 * params - one_moment) / 1e9
    kept = train.keep_last + 2  # besides them the best one and the one being written
    if train.always_save_checkpoint:
        kept = max(1, train.max_iters // (train.checkpoint_interval or train.eval_interval))
    return {
        "checkpoint_gb": size_gb,
        "checkpoint_s": size_gb / o.disk_gb_per_s,
        "checkpoints": kept,
        "data_gb": 4 * tokens / 1e9,
        "dataset_tokens": dataset_tokens(train.dataset, data_root),
    }


def dataset_tokens(dataset: str, data_root: Path) -> int | None:
    """None for one that is not prepared yet, a mixture, or nanoGPT's format. Raises InputError where its
    meta.json is damaged."""
    try:
        return read_meta(dataset_folder(dataset, data_root))["splits"]["train"]["tokens"]
    except (MissingFile, KeyError):
        return None


def budget_flops(budget: str, gpu: GPU, mfu: float | None) -> float:
    """Of "1e21" or "500gpu-hours". Raises InputError."""
    number, in_hours, rest = budget.partition("gpu-hours")
    try:
        flops = float(number)
    except ValueError:
        flops = 0.0
    if rest or not 0 < flops < math.inf:
        raise InputError(
            f"--budget={budget} is neither FLOPs (--budget=1e21) nor hours (--budget=500gpu-hours)"
        )
    if in_hours and mfu is None:
        raise InputError(
            f"--budget={budget}: what hours buy depends on the MFU: --mfu=0.4, or --measured=OUT_DIR"
        )
    if in_hours:
        flops *= 3600 * gpu.peak_flops_per_s * mfu
    if not 1 <= flops < 1e40:
        raise InputError(f"--budget={budget} are {flops:.3g} FLOPs: between 1 and 1e40 can be planned")
    return flops
