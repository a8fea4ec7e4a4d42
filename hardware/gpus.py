"""GPUs: what a data sheet says of each. One row a GPU."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    driver_name: str  # as the driver reports it
    pattern: str | None  # of the names that drivers report for it and its like; None outside the table
    peak_flops_per_s: float  # dense bf16 with fp32 accumulation
    memory_gb: float  # as the vendor counts: the driver shows about as many GiB
    power_w: float | None  # board power limit


# Vendors also print rates with 2:4 sparsity, twice as high (H200 1979, B200 4500 TFLOP/s): not these. NVL,
# laptop and regional variants are other chips: not in the table. The first pattern that fits counts.
# Sources are NVIDIA's datasheets: of the RTX A6000 (309.7 sparse), the Ada whitepaper (table 2), of the A100
# (SXM), the L40S (733 sparse), the H100 PCIe's product brief (1513 sparse), of the H100 and the H200 (SXM:
# 1979 sparse), the GB200 NVL72 (5000 sparse; 13.4 TB on 72) and the HGX B200 (4500 sparse; 1.44 TB on
# eight, of which nvidia-smi shows 179 GiB each).
GPUS: dict[str, GPU] = {
    "A6000": GPU("NVIDIA RTX A6000", r"\bRTX A6000\b", 154.8e12, 48, 300),
    "RTX4090": GPU("NVIDIA GeForce RTX 4090", r"\bRTX 4090$", 165.2e12, 24, 450),
    "A100-40GB": GPU("NVIDIA A100-SXM4-40GB", r"\bA100\b.*\b40GB\b", 312e12, 40, 400),
    "A100": GPU("NVIDIA A100-SXM4-80GB", r"\bA100\b", 312e12, 80, 400),
    "L40S": GPU("NVIDIA L40S", r"\bL40S\b", 362e12, 48, 350),
    "H100-PCIe": GPU("NVIDIA H100 PCIe", r"\bH100 PCIe", 756e12, 80, 350),
    "H100": GPU("NVIDIA H100 80GB HBM3", r"\bH100\b(?! NVL)", 989e12, 80, 700),
    "H200": GPU("NVIDIA H200", r"\bH200\b(?! NVL)", 989e12, 141, 700),
    "B200": GPU("NVIDIA B200", r"\bB200\b", 2250e12, 180, 1000),
    "GB200": GPU("NVIDIA GB200", r"\bGB200\b", 2500e12, 186, 1200),
}


def find_gpu(name: str) -> GPU | None:
    """By its name here or its driver's, whatever the case and the spaces; None for one that is not in the
    table."""
    wanted = plain(name)
    return next((gpu for key, gpu in GPUS.items() if wanted in (plain(key), plain(gpu.driver_name))), None)


def plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum()).removeprefix("geforce")


def peak_flops_per_s(device_name: str) -> float | None:
    """Dense bf16 peak of the device, or None where it is not in the table: then MFU is n/a, not a guess."""
    fitting = (gpu for gpu in GPUS.values() if re.search(gpu.pattern, device_name))
    return next((gpu.peak_flops_per_s for gpu in fitting), None)
