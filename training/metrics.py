"""What a run says about itself: the clock, the run log, the terminal, wandb and its like."""

import json
import logging
import os
import platform
import queue
import resource
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from training.config import TrainConfig
from training.dist import World

log = logging.getLogger("nanofoundry")


class StepTimer:
    """Training time, without evaluation and saving. It waits for no device: the caller reads a loss first, which does."""

    def __init__(self, trained_s: float = 0.0) -> None:
        self.trained_s = trained_s  # over the whole run, earlier sessions included
        self._started: float | None = None
        self._lap_s = 0.0
        self._lap_steps = 0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, steps: int) -> None:
        """Ends a stretch of `steps` optimizer steps."""
        elapsed = time.perf_counter() - self._started
        self.trained_s += elapsed
        self._lap_s += elapsed
        self._lap_steps += steps

    def lap_ms(self) -> float:
        """Mean milliseconds a step since the last call."""
        mean = 1e3 * self._lap_s / self._lap_steps
        self._lap_s, self._lap_steps = 0.0, 0
        return mean


class RunLog:
    """out_dir/run_<UTC time>_<id>.jsonl: one JSON object a line, in the file when `write` returns. On a full disk lines wait in
    memory. Only rank 0 has one; the others' writes nothing."""

    def __init__(self, out_dir: str | Path, rank: int = 0) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = Path(out_dir) / f"run_{stamp}_{secrets.token_hex(3)}.jsonl"
        self._file = open(self.path, "ab", buffering=0) if rank == 0 else None  # noqa: SIM115 open for the whole run
        self._unwritten = b""
        self._warned = False

    def write(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        # JSON has no NaN and no infinity: null
        safe = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}
        self._unwritten += (json.dumps({"event": event, "time": time.time(), **safe}) + "\n").encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            if not self._warned:
                log.warning(f"{self.path} cannot be written: {error}; its lines wait, training goes on")
            self._warned = True


class Progress:
    """A tqdm bar on a terminal; plain lines where the output is piped or logged; silence on all ranks but the first."""

    def __init__(self, step: int, max_iters: int, rank: int = 0) -> None:
        self.max_iters, self.rank = max_iters, rank
        bar = rank == 0 and sys.stderr.isatty()
        self.bar = tqdm(total=max_iters, initial=step, unit="step", dynamic_ncols=True) if bar else None

    def say(self, line: str) -> None:
        if self.rank != 0:
            return
        if self.bar is not None:
            self.bar.write(line)
        else:
            print(line, flush=True)

    def train(self, step: int, m: Mapping[str, Any]) -> None:
        eta_s = (self.max_iters - step) * m["dt_ms"] / 1e3
        mfu = "n/a" if m["mfu"] is None else f"{m['mfu']:.1%}"
        line = (
            f"loss {m['loss']:.4f} | lr {m['lr']:.2e} | grad norm {m['grad_norm']:.2f} | {m['dt_ms']:,.0f} ms | "
            f"{m['tokens_per_s']:,.0f} tokens/s | MFU {mfu}, {m['of_matmul_rate']:.0%} of a matmul | {m['memory_gb']:.2f} GB"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            self.say(f"step {step}/{self.max_iters} | {line} | ETA {format_s(eta_s)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


# A backend opens a run and gives back what logs {"train/loss": 2.5, ...} of a step, and what ends it. `run_id` is the same
# after a resume: one curve. Samples of text are values too.
Backend = tuple[Callable[[dict[str, float | str], int], Any], Callable[[], Any]]


def open_wandb(config: TrainConfig, content: Mapping[str, Any], run_id: str) -> Backend:
    import wandb

    name = config.wandb_run_name or config.out_dir
    run = wandb.init(project=config.wandb_project, name=name, config=dict(content), id=run_id, resume="allow")
    return lambda values, step: run.log({"step": step, **values}, step=step), run.finish


def open_tensorboard(config: TrainConfig, content: Mapping[str, Any], run_id: str) -> Backend:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(Path(config.out_dir) / "tensorboard"), max_queue=1, flush_secs=10)
    writer.add_text("config", f"```\n{json.dumps(content, indent=1)}\n```")

    def write(values: dict[str, float | str], step: int) -> None:
        for name, value in values.items():
            add = writer.add_text if isinstance(value, str) else writer.add_scalar
            add(name, value, step)

    return write, writer.close


def open_trackio(config: TrainConfig, content: Mapping[str, Any], run_id: str) -> Backend:
    import trackio

    name = f"{config.wandb_run_name or config.out_dir} {run_id}"
    trackio.init(project=config.wandb_project, name=name, config=dict(content), resume="allow")
    return lambda values, step: trackio.log(values, step=step), trackio.finish


BACKENDS = {"wandb": open_wandb, "tensorboard": open_tensorboard, "trackio": open_trackio}


class BackendLog:
    """Metrics to one backend from a thread of its own: whether it is absent, fails or hangs, the run goes on."""

    def __init__(self, name: str, config: TrainConfig, content: Mapping[str, Any], run_id: str) -> None:
        self.name = name
        self._queue: queue.Queue[tuple[dict[str, float | str], int] | None] = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(target=self._work, args=(config, content, run_id), daemon=True, name=name)
        self._thread.start()

    def _work(self, config: TrainConfig, content: Mapping[str, Any], run_id: str) -> None:
        try:
            write, finish = BACKENDS[self.name](config, content, run_id)
            while (item := self._queue.get()) is not None:
                write(*item)
            finish()
        except Exception as error:  # whatever it is, it must not reach the run
            how = f" (pip install {self.name})" if isinstance(error, ImportError) else ""
            log.warning(f"{self.name} is off: {type(error).__name__}: {error}{how}; training goes on")

    def put(self, item: tuple[dict[str, float | str], int] | None) -> None:
        if self._thread.is_alive() and not self._queue.full():
            self._queue.put_nowait(item)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)


class Backends:
    """The log backends that the configuration asks for, on rank 0; none on the others."""

    def __init__(self, config: TrainConfig, content: Mapping[str, Any], run_id: str, rank: int = 0) -> None:
        wanted = [name for name in BACKENDS if getattr(config, f"{name}_log") and rank == 0]
        self._logs = [BackendLog(name, config, content, run_id) for name in wanted]

    def write(self, kind: str, step: int, **metrics: float | str | None) -> None:
        """Logs each metric as "kind/metric", those that are None left out."""
        for backend in self._logs:
            backend.put(({f"{kind}/{k}": v for k, v in metrics.items() if v is not None}, step))

    def close(self, timeout_s: float = 15.0) -> None:
        """Waits, for all of them together, until they have written what they were given."""
        deadline = time.monotonic() + timeout_s
        for backend in self._logs:
            backend.put(None)
        for backend in self._logs:
            backend.join(max(0.0, deadline - time.monotonic()))


def memory_gb(device: torch.device) -> float:
    """Peak of the device's memory, in GB (1e9 bytes); on CPU of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class EnergyMeter:
    """meter() is the energy in joules that the GPUs of all ranks have taken for this run, evaluations included, by their own
    counters; None where a device has none. `earlier_j` is that of the sessions before a resume. Every rank calls it."""

    def __init__(self, device: torch.device, world: World, earlier_j: float | None = 0.0) -> None:
        self.world, self.counter = world, energy_counter(device)
        self.earlier_j = float("nan") if earlier_j is None else earlier_j
        self._first_j = self.counter() if self.counter else 0.0

    def __call__(self) -> float | None:
        if self.counter is None:  # on all ranks, whose devices are of one kind
            return None
        total_j = self.world.sum(torch.tensor([self.counter() - self._first_j], dtype=torch.float64)).item() + self.earlier_j
        return total_j if np.isfinite(total_j) else None


def energy_counter(device: torch.device) -> Callable[[], float] | None:
    """Joules since the driver was loaded, NaN where they cannot be read: NVML's counter, which Volta and later GPUs have, by
    the package nvidia-ml-py. None for a device that is no such GPU."""
    if device.type != "cuda" or torch.version.hip:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        # By its UUID: CUDA_VISIBLE_DEVICES and CUDA's own order number GPUs in another way than NVML
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception as error:  # no package, no driver library, a slice of a GPU: training goes on
        log.warning(f"energy is not logged: {type(error).__name__}: {error} (it needs pip install nvidia-ml-py)")
        return lambda: float("nan")

    def joules() -> float:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # NVML counts millijoules
        except pynvml.NVMLError:
            return float("nan")

    return joules


def writable_folder(path: str) -> Path:
    """The folder, not yet made. Raises ValueError where it cannot be made or written."""
    folder = Path(path)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out_dir={path!r} cannot be written: {there} is not a folder that you may write to")
    return folder


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def git_state() -> dict[str, Any] | None:
    """The commit of this checkout and whether it was changed, or None outside one."""
    try:
        run = dict(cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout.strip()
        return {"commit": commit, "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def format_s(seconds: float) -> str:
    """90 -> 1m30s"""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
