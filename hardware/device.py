"""The device: which one, in which types, under which name; glibc's allocator; what compilation needs."""

import ctypes
import importlib.util
import os
import resource
import shutil
import sys

import torch

from base.errors import InputError


def select_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """`auto` is the best that is there: CUDA, then Apple's MPS, then the CPU; of several GPUs each process
    takes its own. Raises InputError for one that is not there, and for one GPU under several processes."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in there.items() if present)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name!r} is not known: one of auto, cpu, cuda, cuda:N, mps") from error
    if not there.get(device.type, False):
        present = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise InputError(
            f"device={name!r} is not there: this machine has {present}; pass --device=auto or one of these"
        )
    if device.type != "cuda":
        return torch.device(device.type)
    if device.index is not None and local_size > 1:
        raise InputError(
            f"device={name!r} is one GPU, and here are {local_size} processes: pass --device=cuda"
        )
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise InputError(
            f"device='cuda:{index}' is not there: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the matmuls. `auto` follows a fixed table: bfloat16 where the hardware multiplies it
    natively, else float32. Raises InputError for a type that the device cannot do."""
    if name != "auto":
        if (
            name == "bfloat16"
            and device.type == "cuda"
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            raise InputError(
                f"dtype='bfloat16' is not native on {torch.cuda.get_device_name(device)}: pass --dtype=float16"
            )
        return getattr(torch, name)
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # torch 2.13
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return f"{names[0] if names else 'CPU'} ({torch.get_num_threads()} threads)"
    return device.type


def keep_freed_memory() -> bool:
    """Tells glibc to keep large freed blocks instead of giving each back to the kernel, which would zero
    the pages again at the next step: faster steps on CPU, for more resident memory. True if it took."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
        settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
        return all(libc.mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError):  # musl
        return False


def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile cannot work here, or None."""
    if device.type == "mps":
        return "it is not supported on MPS"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    compiler = os.environ.get("CXX", "g++" if sys.platform.startswith("linux") else "clang++")
    return (
        None if shutil.which(compiler) else f"on CPU it needs a C++ compiler, and {compiler} is not installed"
    )


def memory_bytes(device: torch.device) -> int | None:
    """What there is in all, in use or not: of the GPU, or of this machine for a CPU; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def memory_gb(device: torch.device) -> float:
    """Peak of the device's memory, in GB (1e9 bytes); on CPU of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
