"""GPUs: what a data sheet says of each. One row a GPU."""

import re
from dataclasses import dataclass

from base.fields import did_you_mean


@dataclass(frozen=True)
class GPU:
    driver_name: str  # as the driver reports it
    pattern: str  # of the names that the driver reports for it and its like
    peak_flops_per_s: float | None  # dense bf16 with fp32 accumulation; None: unknown
    memory_gb: float  # as the vendor counts: the driver shows about as many GiB
    power_w: float | None  # board power limit


# Vendors also print rates with 2:4 sparsity, twice as high (H200 1979, B200 4500 TFLOP/s): not these. NVL,
# laptop and regional variants are other chips: not in the table.
GPUS: dict[str, GPU] = {
    "A6000": GPU(
        "NVIDIA RTX A6000", r"\bRTX A6000\b", 154.8e12, 48, 300
    ),  # RTX A6000 datasheet: 309.7 sparse
    "RTX4090": GPU("NVIDIA GeForce RTX 4090", r"\bRTX 4090$", 165.2e12, 24, 450),  # Ada whitepaper, table 2
    "A100-40GB": GPU("NVIDIA A100-SXM4-40GB", r"\bA100\b.*\b40GB\b", 312e12, 40, 400),  # A100 datasheet, SXM
    "A100": GPU("NVIDIA A100-SXM4-80GB", r"\bA100\b", 312e12, 80, 400),  # A100 datasheet, SXM
    "L40S": GPU("NVIDIA L40S", r"\bL40S\b", 362e12, 48, 350),  # L40S datasheet: 733 sparse
    "H100-PCIe": GPU(
        "NVIDIA H100 PCIe", r"\bH100 PCIe", 756e12, 80, 350
    ),  # H100 PCIe product brief: 1513 sparse
    "H100": GPU(
        "NVIDIA H100 80GB HBM3", r"\bH100\b(?! NVL)", 989e12, 80, 700
    ),  # H100 datasheet, SXM: 1979 sparse
    "H200": GPU("NVIDIA H200", r"\bH200\b(?! NVL)", 989e12, 141, 700),  # H200 datasheet, SXM: 1979 sparse
    "GB200": GPU(
        "NVIDIA GB200", r"\bGB200\b", 2500e12, 186, 1200
    ),  # GB200 NVL72 datasheet: 5000 sparse; 13.4 TB on 72
    "B200": GPU("NVIDIA B200", r"\bB200\b", 2250e12, 180, 1000),  # HGX B200: 4500 sparse; 1.44 TB on eight
}


def find_gpu(name: str) -> GPU | None:
    """By its name here or its driver's, whatever the case and the spaces; None for one that is not in the
    table."""
    wanted = plain(name)
    return next((gpu for key, gpu in GPUS.items() if wanted in (plain(key), plain(gpu.driver_name))), None)


def unknown_gpu(name: str) -> str:
    return f"--gpu={name} is not in the table{did_you_mean(name, GPUS)}; or describe it: --peak_tflops=… --memory_gb=…"


def plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum()).removeprefix("geforce")


def peak_flops_per_s(device_name: str) -> float | None:
    """Dense bf16 peak of the device, or None where it is not in the table: then MFU is n/a, not a guess."""
    return next((gpu.peak_flops_per_s for gpu in GPUS.values() if re.search(gpu.pattern, device_name)), None)
