"""The terminal while a run trains: a bar, or lines."""

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from base.text import duration, printable


class Progress:
    """A tqdm bar on a terminal; plain lines where the output is piped or logged; silence on all ranks but
    the first."""

    def __init__(self, step: int, max_iters: int, rank: int = 0) -> None:
        self.max_iters, self.rank = max_iters, rank
        bar = rank == 0 and sys.stderr.isatty()
        self.bar = tqdm(total=max_iters, initial=step, unit="step", dynamic_ncols=True) if bar else None

    def say(self, line: str) -> None:
        if self.rank != 0:
            return
        line = printable(line)
        if self.bar is not None:
            self.bar.write(line)
        else:
            print(line, flush=True)

    def train(self, step: int, m: Mapping[str, Any]) -> None:
        eta_s = (self.max_iters - step) * m["dt_ms"] / 1e3
        mfu = "n/a" if m["mfu"] is None else f"{m['mfu']:.1%}"
        line = (
            f"loss {m['loss']:.4f} | lr {m['lr']:.2e} | grad norm {m['grad_norm']:.2f} | {m['dt_ms']:,.0f} ms | "
            f"{m['tokens_per_s']:,.0f} tokens/s | MFU {mfu} | {m['memory_gb']:.2f} GB"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(line, refresh=False)
            self.bar.update(step - self.bar.n)
        else:
            self.say(f"step {step}/{self.max_iters} | {line} | ETA {duration(eta_s)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
