"""What a plan is asked for beside a run's configuration, and the GPU that it is asked for."""

from dataclasses import dataclass, replace

from base import fields
from base.errors import InputError
from base.fields import did_you_mean, knob
from hardware.gpus import GPU, GPUS, find_gpu

POSITIVE, FROM_0 = "(0, 1e30)", "[0, 1e30)"


@dataclass(kw_only=True)
class PlanOptions:
    gpus: int = knob(1, "how many; torchrun starts a process on each", bounds="[1, 10^6]")
    gpu: str | None = knob(None, f"one of {', '.join(GPUS)}, or any name with --peak_tflops and --memory_gb")
    peak_tflops: float | None = knob(None, "dense, in the type of the matmuls", bounds=POSITIVE)
    memory_gb: float | None = knob(None, "of one GPU, in GiB, as drivers report it", bounds=POSITIVE)
    mfu: float | None = knob(None, "the share of the peak that training will reach: 0.4", bounds=POSITIVE)
    measured: str | None = knob(None, "a run's folder or log, whose MFU is taken")
    tokens: float | None = knob(
        None, "to train on; none: those of the configuration's steps", bounds=POSITIVE
    )
    fragmentation: float = knob(0.05, "added to the memory, as a share of it", bounds=FROM_0)
    context_gb: float = knob(1.0, "added to the memory, in GiB: the device's own context", bounds=FROM_0)
    disk_gb_per_s: float = knob(1.0, "at which checkpoints are written", bounds=POSITIVE)
    power_w: float | None = knob(None, "of one GPU; none: its board's limit", bounds=POSITIVE)
    price_per_gpu_hour: float | None = knob(None, "in any currency", bounds=FROM_0)
    price_per_kwh: float | None = knob(None, "in the same currency", bounds=FROM_0)
    budget: str | None = knob(
        None, "FLOPs (1e21) or hours (500gpu-hours): which model do they buy, in place of a plan of this one"
    )
    json: bool = knob(False, "print the numbers as JSON")

    def __post_init__(self) -> None:
        fields.check(self)
        if self.mfu is not None and self.mfu > 1:
            raise InputError(f"--mfu={self.mfu} is a fraction of the peak: 0.4 is 40 %")
        if self.mfu is not None and self.measured is not None:
            raise InputError(
                f"--mfu={self.mfu} and --measured={self.measured} say the same thing twice: give one"
            )

    def device(self) -> GPU:
        """The GPU with what the flags say of it. Raises InputError where neither table nor flags know."""
        gpu = find_gpu(self.gpu) if self.gpu else None
        if gpu is None:
            if self.peak_tflops is None or self.memory_gb is None:
                described = "--peak_tflops=… --memory_gb=…"
                raise InputError(
                    f"--gpu={self.gpu} is not in the table{did_you_mean(self.gpu, GPUS)}; or describe it: {described}"
                    if self.gpu
                    else f"which GPU? --gpu=H100, or {described}"
                )
            gpu = GPU(self.gpu or "GPU", None, 1e12 * self.peak_tflops, self.memory_gb, None)
        return replace(
            gpu,
            peak_flops_per_s=1e12 * self.peak_tflops if self.peak_tflops else gpu.peak_flops_per_s,
            memory_gb=self.memory_gb or gpu.memory_gb,
            power_w=self.power_w or gpu.power_w,
        )
