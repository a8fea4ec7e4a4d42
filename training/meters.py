"""The clock of a run, and the energy that it takes."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from training.world import World

log = logging.getLogger("nanofoundry")


class StepTimer:
    """Training time, without evaluation and saving. A step returns while the device still works on it; what reads its
    result waits for the device, and that wait is training too: settle() before whatever else is done."""

    def __init__(self, trained_s: float = 0.0, wait: Callable[[], object] = lambda: None) -> None:
        """`wait` returns when the device has done what it was given."""
        self.trained_s = trained_s  # over the whole run, earlier sessions included
        self.wait = wait
        self._started = self._cpu_started = 0.0
        self._lap_s = 0.0
        self._lap_steps = 0
        # Since the last answer of waited(): time, and processor time of this process, of all its threads
        self._wall_s = self._cpu_s = 0.0

    def settle(self) -> None:
        """Waits for the device, as part of the steps made so far."""
        if self._lap_steps:
            self.start()
            self.wait()
            self.stop(steps=0)

    def start(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def stop(self, steps: int) -> None:
        """Ends a stretch of `steps` optimizer steps."""
        elapsed = time.perf_counter() - self._started
        self.trained_s += elapsed
        self._lap_s += elapsed
        self._wall_s += elapsed
        self._cpu_s += time.process_time() - self._cpu_started
        self._lap_steps += steps

    def lap_ms(self) -> float:
        """Mean milliseconds a step since the last call."""
        mean = 1e3 * self._lap_s / self._lap_steps
        self._lap_s, self._lap_steps = 0.0, 0
        return mean

    def waited(self, enough_s: float = 5.0) -> float:
        """How many times their own processor time the steps since the last answer took: on a CPU far above 1 where
        others work on it. 1 where they are too short to say."""
        if self._wall_s < enough_s:
            return 1.0
        ratio = self._wall_s / max(self._cpu_s, 1e-9)
        self._wall_s = self._cpu_s = 0.0
        return ratio


class EnergyMeter:
    """meter() is the energy in joules that the GPUs of all ranks have taken for this run, evaluations
    included, by their own counters; None where a device has none. `earlier_j` is that of the sessions
    before a resume. Every rank calls it."""

    def __init__(self, device: torch.device, world: World, earlier_j: float | None = 0.0) -> None:
        self.world, self.counter = world, energy_counter(device)
        self.earlier_j = float("nan") if earlier_j is None else earlier_j
        self._first_j = self.counter() if self.counter else 0.0

    def __call__(self) -> float | None:
        if self.counter is None:  # on all ranks, whose devices are of one kind
            return None
        total_j = (
            self.world.sum(torch.tensor([self.counter() - self._first_j], dtype=torch.float64)).item()
            + self.earlier_j
        )
        return total_j if np.isfinite(total_j) else None


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Joules since the driver was loaded, NaN where they cannot be read: NVML's counter, which Volta and
    later GPUs have, by the package nvidia-ml-py. None for another device."""
    if device.type != "cuda" or torch.version.hip:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        # By its UUID: CUDA_VISIBLE_DEVICES and CUDA's own order number GPUs in another way than NVML
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception as error:  # no package, no driver library, a slice of a GPU: training continues
        log.warning(
            f"energy is not logged: {type(error).__name__}: {error} (it needs pip install nvidia-ml-py)"
        )
        return lambda: float("nan")

    def joules() -> float:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # NVML counts millijoules
        except pynvml.NVMLError:
            return float("nan")

    return joules
