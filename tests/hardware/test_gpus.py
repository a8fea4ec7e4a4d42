"""One row a GPU: names find it, and the driver's name its peak."""

from hardware.gpus import GPUS, find_gpu, peak_flops_per_s


def test_every_gpu_has_a_peak():
    for name, gpu in GPUS.items():
        assert peak_flops_per_s(gpu.driver_name) == gpu.peak_flops_per_s > 0
        assert find_gpu(name) is find_gpu(gpu.driver_name) is gpu


def test_names_in_any_spelling():
    assert find_gpu("rtx a6000") is find_gpu("NVIDIA RTX A6000") is GPUS["A6000"]
    assert find_gpu("geforce rtx 4090") is GPUS["RTX4090"] and find_gpu("H1000") is find_gpu("") is None


def test_the_memory_tells_a100s_apart():
    assert peak_flops_per_s("NVIDIA A100-PCIE-40GB") == peak_flops_per_s("NVIDIA A100-SXM4-80GB") == 312e12
    assert (GPUS["A100-40GB"].memory_gb, GPUS["A100"].memory_gb) == (40, 80)
