"""What a GPU has and draws. Its peak rate is in training/flops.py, under the name that the driver reports."""

from dataclasses import dataclass

from model_config import did_you_mean


@dataclass(frozen=True)
class GPU:
    driver_name: str
    memory_gb: float  # as the vendor counts: the driver shows about as many GiB
    power_w: float | None  # board power limit


# NVIDIA's datasheets of these products: memory, maximum power
GPUS: dict[str, GPU] = {
    "A6000": GPU("NVIDIA RTX A6000", 48, 300),  # RTX A6000 datasheet
    "RTX4090": GPU("NVIDIA GeForce RTX 4090", 24, 450),  # Ada whitepaper, table 2
    "A100-40GB": GPU("NVIDIA A100-SXM4-40GB", 40, 400),  # A100 datasheet, SXM
    "A100": GPU("NVIDIA A100-SXM4-80GB", 80, 400),  # A100 datasheet, SXM
    "L40S": GPU("NVIDIA L40S", 48, 350),  # L40S datasheet
    "H100": GPU("NVIDIA H100 80GB HBM3", 80, 700),  # H100 datasheet, SXM
    "H100-PCIe": GPU("NVIDIA H100 PCIe", 80, 350),  # H100 PCIe product brief
    "H200": GPU("NVIDIA H200", 141, 700),  # H200 datasheet, SXM
    "B200": GPU("NVIDIA B200", 180, 1000),  # HGX B200: 1.44 TB on eight; nvidia-smi shows 179 GiB
    "GB200": GPU("NVIDIA GB200", 186, 1200),  # GB200 NVL72 datasheet: 13.4 TB on 72
}


def find_gpu(name: str) -> GPU | None:
    """By its name here or its driver's, whatever the case and the spaces; None for one that is not in the table."""
    wanted = plain(name)
    return next((gpu for key, gpu in GPUS.items() if wanted in (plain(key), plain(gpu.driver_name))), None)


def unknown_gpu(name: str) -> str:
    return f"--gpu={name} is not in the table{did_you_mean(name, GPUS)}; or describe it: --peak_tflops=… --memory_gb=…"


def plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum()).removeprefix("geforce")
