"""wandb, TensorBoard and trackio: each in a thread of its own, so that none of them can stop a run."""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.config import TrainConfig

log = logging.getLogger("nanofoundry")

# A backend opens a run and gives back what logs {"train/loss": 2.5, ...} of a step, and what ends it.
# `run_id` is the same after a resume: one curve, without what an earlier session did beyond `start_step`. Samples of
# text are values too.
Backend = tuple[Callable[[dict[str, float | str], int], Any], Callable[[], Any]]


def open_wandb(config: TrainConfig, content: Mapping[str, Any], run_id: str, start_step: int) -> Backend:
    import wandb

    name = config.wandb_run_name or config.out_dir
    run = wandb.init(project=config.wandb_project, name=name, config=dict(content), id=run_id, resume="allow")
    return lambda values, step: run.log({"step": step, **values}, step=step), run.finish


def open_tensorboard(
    config: TrainConfig, content: Mapping[str, Any], run_id: str, start_step: int
) -> Backend:
    from torch.utils.tensorboard import SummaryWriter

    folder = str(Path(config.out_dir) / "tensorboard")
    writer = SummaryWriter(folder, max_queue=1, flush_secs=10, purge_step=start_step + 1)
    writer.add_text("config", f"```\n{json.dumps(content, indent=1)}\n```")

    def write(values: dict[str, float | str], step: int) -> None:
        for name, value in values.items():
            add = writer.add_text if isinstance(value, str) else writer.add_scalar
            add(name, value, step)

    return write, writer.close


def open_trackio(config: TrainConfig, content: Mapping[str, Any], run_id: str, start_step: int) -> Backend:
    import trackio

    name = f"{config.wandb_run_name or config.out_dir} {run_id}"
    trackio.init(project=config.wandb_project, name=name, config=dict(content), resume="allow")
    return lambda values, step: trackio.log(values, step=step), trackio.finish


BACKENDS = {"wandb": open_wandb, "tensorboard": open_tensorboard, "trackio": open_trackio}


class BackendLog:
    """Metrics to one backend from a thread of its own: whether it is absent, fails or hangs, the run goes
    on."""

    def __init__(
        self, name: str, config: TrainConfig, content: Mapping[str, Any], run_id: str, start_step: int
    ) -> None:
        self.name = name
        self._queue: queue.Queue[tuple[dict[str, float | str], int] | None] = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(
            target=self._work, args=(config, content, run_id, start_step), daemon=True, name=name
        )
        self._thread.start()

    def _work(self, config: TrainConfig, content: Mapping[str, Any], run_id: str, start_step: int) -> None:
        try:
            write, finish = BACKENDS[self.name](config, content, run_id, start_step)
            while (item := self._queue.get()) is not None:
                write(*item)
            finish()
        except Exception as error:  # whatever it is, it must not reach the run
            how = f" (pip install {self.name})" if isinstance(error, ImportError) else ""
            log.warning(f"{self.name} is off: {type(error).__name__}: {error}{how}; training continues")

    def put(self, item: tuple[dict[str, float | str], int] | None) -> None:
        if self._thread.is_alive() and not self._queue.full():
            self._queue.put_nowait(item)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)


class Backends:
    """The log backends that the configuration asks for, on rank 0; none on the others."""

    def __init__(
        self,
        config: TrainConfig,
        content: Mapping[str, Any],
        run_id: str,
        start_step: int = 0,
        rank: int = 0,
    ) -> None:
        wanted = [name for name in BACKENDS if getattr(config, f"{name}_log") and rank == 0]
        self._logs = [BackendLog(name, config, content, run_id, start_step) for name in wanted]

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
