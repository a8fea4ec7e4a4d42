"""GPUs: what a data sheet says of each. One row a GPU."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    driver_name: str  # as the driver reports it
    pattern: str | None  # of all names that drivers report for the whole card; None outside the table
    peak_flops_per_s: float  # dense bf16, and fp16, with fp32 accumulation
    memory_gb: float  # as the vendor counts: the driver shows about as many GiB
    power_w: float | None  # board power limit
    fp32_flops_per_s: float | None = None  # without tensor cores, as torch multiplies float32 by default
    fp8_flops_per_s: float | None = None  # dense; None where there is no FP8


# Vendors also print rates with 2:4 sparsity, twice as high (H200 1979, B200 4500 TFLOP/s): not these. NVL,
# laptop and regional variants are other chips, a MIG slice or a virtual GPU ("GRID A100-10C", "A100-4C") is a part
# of one: not in the table, so a pattern is of the whole name. Sources are NVIDIA's datasheets: of the RTX A6000
# (309.7 sparse), the Ada whitepaper (table 2), of the A100 (SXM), the L40S (733 sparse; FP8 733 dense), the H100
# PCIe's product brief (1513 sparse; FP8 1513 dense), of the H100 and the H200 (SXM: 1979 sparse; FP8 1979 dense), the
# GB200 NVL72 (5000 sparse; FP32 5,760 on 72; 13.4 TB on 72) and the HGX B200 (4500 sparse; FP32 600 on eight; 1.44 TB
# on eight, of which nvidia-smi shows 179 GiB each).
GPUS: dict[str, GPU] = {
    "A6000": GPU("NVIDIA RTX A6000", r"RTX A6000", 154.8e12, 48, 300, 38.7e12),
    "RTX4090": GPU("NVIDIA GeForce RTX 4090", r"GeForce RTX 4090", 165.2e12, 24, 450, 82.6e12, 330.3e12),
    "A100-40GB": GPU("NVIDIA A100-SXM4-40GB", r"A100-(SXM4?|PCIE)-40GB", 312e12, 40, 400, 19.5e12),
    "A100": GPU("NVIDIA A100-SXM4-80GB", r"A100-(SXM4?|PCIE)-80GB|A100 80GB PCIe", 312e12, 80, 400, 19.5e12),
    "L40S": GPU("NVIDIA L40S", r"L40S", 362e12, 48, 350, 91.6e12, 733e12),
    "H100-PCIe": GPU("NVIDIA H100 PCIe", r"H100 PCIe", 756e12, 80, 350, 51e12, 1513e12),
    "H100": GPU("NVIDIA H100 80GB HBM3", r"H100( SXM5?)?( 80GB)?( HBM3)?", 989e12, 80, 700, 67e12, 1979e12),
    "H200": GPU("NVIDIA H200", r"H200( SXM5?)?", 989e12, 141, 700, 67e12, 1979e12),
    "B200": GPU("NVIDIA B200", r"B200", 2250e12, 180, 1000, 75e12, 4500e12),
    "GB200": GPU("NVIDIA GB200", r"GB200", 2500e12, 186, 1200, 80e12, 5000e12),
}


def find_gpu(name: str) -> GPU | None:
    """By its name here or its driver's, whatever the case and the spaces; None for one that is not in the
    table."""
    wanted = plain(name)
    return next((gpu for key, gpu in GPUS.items() if wanted in (plain(key), plain(gpu.driver_name))), None)


def plain(name: str) -> str:
    return "".join(c for c in name.lower().removeprefix("nvidia") if c.isalnum()).removeprefix("geforce")


def peak_flops_per_s(device_name: str, dtype: str = "bfloat16", fp8: bool = False) -> float | None:
    """Dense peak of the device in the type that multiplies: `dtype` of torch, or FP8 where the blocks do. None where
    the device is not in the table, or the table has no such rate: then MFU is n/a, not a guess."""
    name = device_name.removeprefix("NVIDIA ")
    gpu = next((gpu for gpu in GPUS.values() if re.fullmatch(gpu.pattern, name)), None)
    if gpu is None:
        return None
    half = {"bfloat16": gpu.peak_flops_per_s, "float16": gpu.peak_flops_per_s}
    return gpu.fp8_flops_per_s if fp8 else {**half, "float32": gpu.fp32_flops_per_s}.get(dtype)
