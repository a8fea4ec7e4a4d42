"""The process and the others: ranks, what they agree on, the device, the allocator, and the signals that
end a run."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from base.errors import InputError, one_line

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is among all of the run's; what torchrun put into the environment, else one process
    alone.

    Collectives are methods, so that every rank's program reads the same; alone they cost nothing. A CPU
    tensor travels by gloo, whatever the device."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine

    @classmethod
    def from_environment(cls) -> "World":
        """Raises InputError for a part of what torchrun sets without the rest, and for numbers that contradict each
        other: a rank that takes itself for the only one would train a run of its own."""
        env = os.environ
        numbers = []
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1)):
            text = env.get(name, str(default))
            if not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise InputError(
                    f"{name}={text[:40]!r} in the environment is not a number: start with torchrun, or unset it"
                )
            numbers.append(int(text))
        world = cls(*numbers)
        missing = [v for v in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not env.get(v)]
        if "RANK" in env and "WORLD_SIZE" not in env:
            raise InputError(
                f"RANK={env['RANK']} in the environment, but no WORLD_SIZE: start with torchrun, or unset it"
            )
        if world.size > 1 and missing:
            raise InputError(
                f"WORLD_SIZE={world.size}, but {', '.join(missing)} is not set: start with torchrun"
            )
        local_size = (
            world.local_size if "LOCAL_WORLD_SIZE" in env else world.size
        )  # other launchers leave it out
        if not (world.rank < world.size >= local_size > world.local_rank):
            said = ", ".join(
                f"{v}={env[v]}" for v in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if v in env
            )
            raise InputError(f"{said} in the environment cannot be: start with torchrun, or unset them")
        port = env.get("MASTER_PORT", "1")
        if world.size > 1 and not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) < 65536):
            raise InputError(f"MASTER_PORT={port!r} in the environment is not a port, 1 to 65535")
        return world

    @contextlib.contextmanager
    def connected(self, device: torch.device, timeout_s: float) -> Iterator[None]:
        """Around everything that the processes do together. A collective waits at most timeout_s for a
        rank; where one fails or hangs, the others name it."""
        if self.size == 1:
            yield
            return
        timeout = timedelta(seconds=timeout_s)
        store, rank, size = rendezvous(timeout)
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun keeps one store over all restarts: without a prefix a rank may read where one that is
            # dead listened. Nodes count their restarts each by itself; scripts/torchrun_nodes.sh has a new
            # store for every restart instead.
            store = torch.distributed.PrefixStore(
                f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store
            )
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # NCCL's watchdog ends the process past all Python; with this it says first which ranks did not come
        os.environ.setdefault("TORCH_NCCL_DESYNC_DEBUG", "1")
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timeout
        )
        try:
            yield
        except InputError:  # whatever words it holds
            raise
        except Exception as error:
            if re.search(r"gloo|nccl|timed? ?out|closed by peer|connection reset", str(error), re.IGNORECASE):
                # A dead rank is noticed by all at once, a hung one at the end of each rank's own time
                self._name_the_silent(store, 10.0 if "imed" in str(error) else 2.0)
            raise
        self.barrier()  # without it gloo aborts now and then when the processes end at different moments
        torch.distributed.destroy_process_group()

    def _name_the_silent(self, store: torch.distributed.Store, wait_s: float) -> None:
        """Every rank whose collective failed reports to the store; who does not is dead or hangs."""
        silent = list(range(self.size))
        try:
            store.set(f"reported/{self.rank}", socket.gethostname())
            deadline = time.monotonic() + wait_s
            while silent and time.monotonic() < deadline:
                silent = [rank for rank in silent if not store.check([f"reported/{rank}"])]
                time.sleep(0.1)
        except RuntimeError:  # the store lives in rank 0, or in torchrun on its machine
            silent = [0]
        if silent:
            ranks = ", ".join(str(rank) for rank in silent)
            print(
                f"rank {self.rank}: rank {ranks} does not answer: it is dead or hangs; ending",
                file=sys.stderr,
                flush=True,
            )

    def barrier(self) -> None:
        self.sum(torch.zeros(1))

    def sum(self, tensor: Tensor) -> Tensor:
        """In place, over all ranks."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def first(self, value: str | None) -> str | None:
        """The value of the lowest rank that has one; the same on every rank."""
        values = [value]
        if self.size > 1:
            values = [None] * self.size
            torch.distributed.all_gather_object(values, value)
        return next((v for v in values if v is not None), None)

    def by_rank_0(self, work: Callable[[], T]) -> T | None:
        """What work() returns on rank 0, None on the others; an InputError of it is raised on all."""
        done, problem = None, None
        if self.rank == 0:
            try:
                done = work()
            except InputError as error:
                problem = str(error)
        if (problem := self.first(problem)) is not None:
            raise InputError(problem)
        return done


def rendezvous(timeout: timedelta) -> tuple[torch.distributed.Store, int, int]:
    """Where the processes meet, this one's rank and their number. Raises InputError where they do not: the address
    is wrong, its port is taken, or nobody answers."""
    try:
        return next(torch.distributed.rendezvous("env://", timeout=timeout))
    except (torch.distributed.DistError, ValueError, OSError) as error:
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
        raise InputError(
            f"the processes cannot meet at {where} ({one_line(error)[:200]}): the address must be that of rank 0's machine, "
            f"its port free there, and all processes must start within {timeout.total_seconds():.0f} s"
        ) from error


def on_ranks(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """For tests and benchmarks: what work(world, *args) returns, as JSON, in each of `size` connected
    processes of this machine, on CPU with a thread each. An exception in one of them is raised here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_one_of_ranks, (size, port, folder, work, args), nprocs=size, daemon=True)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def _one_of_ranks(
    rank: int, size: int, port: int, folder: str, work: Callable[..., Any], args: Sequence[Any]
) -> None:
    env = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({k: str(v) for k, v in env.items()})
    torch.set_num_threads(1)
    world = World.from_environment()
    with world.connected(torch.device("cpu"), timeout_s=120):
        Path(folder, f"{rank}.json").write_text(json.dumps(work(world, *args)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as exit_with does, and for its reason


def speaks_first(message: str) -> bool:
    """Whether no other process of this torchrun has said so already."""
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        store = torch.distributed.TCPStore(
            env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10)
        )
        return store.add(f"said/{env['TORCHELASTIC_RESTART_COUNT']}/{message}", 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True  # better twice than never


def exit_with(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Ends the process with what main returns, 1 after an exception. Gloo's threads free Python objects at
    a time of their own; where the interpreter is already being dismantled that aborts the process, and a
    save in the background that waits for a rank which hangs would be waited for; so a connected one leaves
    without dismantling."""
    many = os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    except BaseException:
        if not many:
            raise
        traceback.print_exc()
        code = 1
    if many:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


class StopVote:
    """Whether the run is to stop, on which all ranks agree. A rank's vote travels while it works on and
    counts at its next call, so nobody waits; alone it counts at once."""

    def __init__(self, world: World, signals: "StopSignals") -> None:
        self.world, self.signals = world, signals
        signals.heard = True
        self.agreed: str | None = None  # the name of the signal
        self._pending: tuple[Tensor, torch.distributed.Work] | None = None

    def __call__(self) -> bool:
        """Every rank calls it equally often, at the same points of its work."""
        if self.world.size == 1:
            self.agreed = self.signals.received
        elif self.agreed is None:
            if self._pending is not None:
                vote, work = self._pending
                work.wait()
                if vote.item():
                    self.agreed = signal.Signals(int(vote)).name
            own = signal.Signals[self.signals.received] if self.signals.received else 0
            vote = torch.tensor([own], dtype=torch.int32)
            self._pending = (
                vote,
                torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MAX, async_op=True),
            )
        return self.agreed is not None


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint and an end; `received` names the first. The same one
    within REPEAT_S is the same request, which a launcher passed on too; any other second one ends at once.
    The death of torchrun asks for an end as SIGTERM does, and makes it in ORPHAN_S at the latest."""

    REPEAT_S = 5.0
    ORPHAN_S = 300.0  # TORCH_ELASTIC_SHUTDOWN_TIMEOUT of the scripts, which torchrun would wait

    def __init__(self) -> None:
        self.received: str | None = None
        self.heard = False  # whether anybody asks; before, there is nothing to save
        self._received_at = 0.0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # not for whom a user starts, who may leave
            threading.Thread(target=self._watch, args=(os.getppid(),), name="launcher", daemon=True).start()

    def _handle(self, number: int, frame: object) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.received is None:
            self.received, self._received_at = name, now
        elif name != self.received or now - self._received_at > self.REPEAT_S:
            os._exit(128 + number)

    def _watch(self, launcher: int) -> None:
        while os.getppid() == launcher and not _is_an_init(launcher):
            time.sleep(0.5)
        self.received = self.received or "SIGTERM"
        with contextlib.suppress(OSError):  # the terminal may have gone with it
            print("the launcher of this process is gone: ending", file=sys.stderr, flush=True)
        if self.heard:
            time.sleep(self.ORPHAN_S)
        os._exit(1)


def _is_an_init(pid: int) -> bool:
    """Whether a parent is process 1 and runs another program than Python: the launcher died before it could
    be known, and its children were handed on."""
    try:
        return pid == 1 and not Path(os.readlink("/proc/1/exe")).name.startswith(("python", "pypy"))
    except OSError:  # another user's: not known
        return False
