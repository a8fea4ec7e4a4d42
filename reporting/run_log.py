"""The run log: one JSON object a line, in the file when it is said."""

import json
import logging
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("nanofoundry")


class RunLog:
    """out_dir/run_<UTC time>_<id>.jsonl: one JSON object a line, in the file when `write` returns. On a
    full disk lines wait in memory. Only rank 0 has one; the others' writes nothing."""

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
                log.warning(f"{self.path} cannot be written: {error}; its lines wait, training continues")
            self._warned = True
