"""Chat templates rendered in a process apart, within limits of time, memory and output. Started with the
first template, it serves all later ones."""

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base.errors import InputError, MissingPackage, one_line, require
from base.text import printable

WORKER = Path(__file__).with_name("template_worker.py")
CPU_S = 5.0  # of the processor's time: a template of a page takes a thousandth of that
WALL_S = 60.0  # of a machine that is busy with other things
MAX_CHARACTERS = 1 << 26
MAX_SOURCE = 1 << 20


def render_template(source: str, variables: Mapping[str, Any], where: str) -> str:
    """What the template makes of the variables, which are plain JSON. Raises InputError, in one line, where it
    is not Jinja, refuses them, or needs more time, memory or room than a template may have; MissingPackage
    without jinja2."""
    jinja2 = require("jinja2", "a chat template")
    if tuple(int(n) for n in jinja2.__version__.split(".")[:3] if n.isdecimal()) < (3, 1, 6):
        raise MissingPackage(f"a chat template needs jinja2 3.1.6 or later, whose sandbox holds: {UPGRADE}")
    fails = f"the chat template of {where} fails"
    if len(source) > MAX_SOURCE:
        raise InputError(f"{fails}: it has {len(source):,} characters, at most {MAX_SOURCE:,} are taken")
    try:
        request = {
            "source": source,
            "variables": dict(variables),
            "cpu_s": CPU_S,
            "max_characters": MAX_CHARACTERS,
        }
        content = json.dumps(request).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{fails}: what it is given is not plain JSON ({one_line(error)})") from None
    answer = WORKERS.answer_to(content)
    text = answer.get("text")
    if text is not None:
        try:
            text.encode()  # a template may hold half a surrogate pair, which no tokenizer takes
            return text
        except UnicodeEncodeError as error:
            answer = {"error": str(error)}
    raise InputError(f"{fails}: {printable(' '.join(answer['error'].split()))[:500]}")


UPGRADE = "pip install -U jinja2"


class Workers:
    """One worker at a time, started when it is needed, and again after one that had to be ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None
        self.owner = 0  # the process that started it: a fork of that needs its own

    def answer_to(self, request: bytes) -> dict[str, Any]:
        with self.lock:
            if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                self._start()
            try:
                answer = self._ask(len(request).to_bytes(8, "big") + request)
                return json.loads(answer)
            except (OSError, EOFError, TimeoutError):
                return {"error": self._why_it_ended()}
            except BaseException:  # Ctrl-C: what it would answer later is to no question
                self.end()
                raise

    def _start(self) -> None:
        command = [sys.executable, "-P", str(WORKER)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            self.process = subprocess.Popen(command, **pipes)
        except OSError as error:
            raise InputError(
                f"the process that renders chat templates cannot be started ({error.strerror}): free some memory"
            ) from None
        self.owner = os.getpid()

    def _ask(self, request: bytes) -> bytes:
        process, deadline = self.process, time.monotonic() + WALL_S
        process.stdin.write(request)
        process.stdin.flush()
        size = int.from_bytes(_read(process.stdout, 8, deadline), "big")
        return _read(process.stdout, size, deadline)

    def _why_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # it may be about to be gone
        code = self.process.poll()
        self.end()
        if code is None:
            return f"it does not end within {WALL_S:g} seconds"
        if code == -signal.SIGPROF:
            return f"it does not end within {CPU_S:g} seconds of the processor's time"
        return "it ended the process that renders it, for lack of memory perhaps"

    def end(self) -> None:
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()


def _read(pipe: Any, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes. Raises EOFError, TimeoutError."""
    content = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(content) < size:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            part = os.read(pipe.fileno(), min(size - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
    return bytes(content)


WORKERS = Workers()
atexit.register(WORKERS.end)
