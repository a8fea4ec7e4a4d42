"""--dashboard: the run on one screen: loss curve, speed, memory, time to go, what happened last. Needs
rich."""

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from base.errors import require
from base.text import duration, printable
from reporting.progress import Progress
from training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

EIGHTHS = " ▁▂▃▄▅▆▇█"
MOST_POINTS = 4096  # of the loss, twice as many as are kept after thinning


def check_dashboard(config: TrainConfig) -> None:
    """Raises MissingPackage, with what to do, where the configuration asks for it and rich is not
    installed."""
    if config.dashboard:
        require("rich", "dashboard=True")


def area_chart(values: Sequence[float], width: int, height: int) -> list[str]:
    """The finite values as `height` lines of at most `width` characters, each the mean of its share of
    them; the lowest of them stands one eighth high."""
    values = [v for v in values if v - v == 0]
    columns = min(width, len(values))
    if not columns:
        return [""] * height
    edges = [i * len(values) // columns for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    heights = [1 + round((m - low) / (high - low or 1) * (8 * height - 1)) for m in means]
    return ["".join(EIGHTHS[min(8, max(0, h - 8 * row))] for h in heights) for row in reversed(range(height))]


class Dashboard(Progress):
    """Drawn twice a second from a thread of rich's own; nothing on all ranks but the first."""

    def __init__(self, step: int, max_iters: int, rank: int = 0) -> None:
        self.step, self.max_iters, self.rank = step, max_iters, rank
        self.losses: list[float] = []
        self.events: deque[str] = deque(maxlen=8)
        self.last: Mapping[str, Any] | None = None
        self._live = None
        if rank == 0:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self.render,
                console=Console(stderr=True),
                refresh_per_second=2,
                redirect_stdout=False,
            )
            self._live.start()

    def say(self, line: str) -> None:
        if self.rank == 0:
            line = printable(line)
            self.events.extend(f"{time.strftime('%H:%M:%S')} {part}" for part in line.splitlines())
            if not sys.stdout.isatty():  # a log that stdout goes to has every line
                print(line, flush=True)

    def train(self, step: int, m: Mapping[str, Any]) -> None:
        self.step, self.last = step, m
        self.losses.append(m["loss"])
        if len(self.losses) >= MOST_POINTS:
            self.losses = [(a + b) / 2 for a, b in zip(self.losses[::2], self.losses[1::2], strict=True)]

    def render(self) -> "RenderableType":
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        m = self.last
        figures = Table.grid(padding=(0, 2))
        if m is not None:
            eta_s = (self.max_iters - self.step) * m["dt_ms"] / 1e3
            mfu = "n/a" if m["mfu"] is None else f"{m['mfu']:.1%}"
            figures.add_row(
                "step",
                f"{self.step:,} of {self.max_iters:,}",
                "tokens",
                f"{m['tokens']:,}",
                "ETA",
                duration(eta_s),
            )
            figures.add_row("loss", f"{m['loss']:.4f}", "tokens/s", f"{m['tokens_per_s']:,.0f}", "MFU", mfu)
            figures.add_row(
                "lr",
                f"{m['lr']:.2e}",
                "step time",
                f"{m['dt_ms']:,.0f} ms",
                "memory",
                f"{m['memory_gb']:.2f} GB",
            )
            skipped = str(m.get("skipped_steps", "n/a"))
            figures.add_row("grad norm", f"{m['grad_norm']:.2f}", "skipped steps", skipped)
        width = self._live.console.width - 4 if self._live else 76
        chart = Text("\n".join(area_chart(list(self.losses), width, 8)), style="cyan", no_wrap=True)
        return Group(
            ProgressBar(total=max(1, self.max_iters), completed=self.step),
            Panel(figures, title="training"),
            Panel(chart, title="training loss"),
            Panel(Text("\n".join(self.events), overflow="ellipsis", no_wrap=True), title="last events"),
        )

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
