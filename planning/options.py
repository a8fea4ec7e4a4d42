"""What plan.py is told besides the configuration."""

from dataclasses import dataclass

from base import fields
from base.errors import InputError
from base.fields import knob

POSITIVE, AT_LEAST_0 = "(0, 1e30)", "[0, 1e30)"


@dataclass(kw_only=True)
class PlanOptions:
    gpus: int = knob(1, "GPUs, of all nodes together", bounds="[1, 1e30)")
    gpu: str | None = knob(
        None, "which, such as A6000, H100, H200, B200; another is described by the next two"
    )
    peak_tflops: float | None = knob(
        None, "dense, in the type of the matmuls; none: that of its data sheet", bounds=POSITIVE
    )
    memory_gb: float | None = knob(
        None, "GiB, as drivers report it; none: that of its data sheet", bounds=POSITIVE
    )
    mfu: float | None = knob(None, "the share of the peak that is reached; none: a range", bounds="(0, 1]")
    measured: str | None = knob(None, "a run's folder or log, of which the MFU is taken")
    tokens: float | None = knob(None, "to train on; none: those of max_iters steps", bounds=POSITIVE)
    fragmentation: float = knob(0.05, "added to the memory of tensors, as a share of it", bounds=AT_LEAST_0)
    context_gb: float = knob(1.0, "GiB of the device's own", bounds=AT_LEAST_0)
    disk_gb_per_s: float = knob(1.0, "at which checkpoints are written", bounds=POSITIVE)
    power_w: float | None = knob(None, "of one GPU; none: its board limit", bounds=POSITIVE)
    price_per_gpu_hour: float | None = knob(None, "in any currency", bounds=AT_LEAST_0)
    price_per_kwh: float | None = knob(None, "in the same currency", bounds=AT_LEAST_0)
    budget: str | None = knob(None, "FLOPs or hours, 1e21 or 500gpu-hours: which shapes to train with them")
    json: bool = knob(False, "the same numbers as JSON")

    def __post_init__(self) -> None:
        fields.check(self)
        if self.mfu is not None and self.measured is not None:
            raise InputError(
                f"--mfu={self.mfu} and --measured={self.measured} say the same thing twice: give one"
            )
