"""Run logs -> one fair table, the curves, and the numbers behind them.

    python compare_architectures.py --latest 3                     # the newest runs of out*/ and out*/*/
    python compare_architectures.py out-gpt2 'out-qwen3/run_*.jsonl' out-sweep --out=comparison
    python compare_architectures.py --run config/compare_tiny_*.py --seeds 3 --tokens 1e6   # trains first what is missing
    python compare_architectures.py --run config/quickstart.py --set rope_theta=1e4,5e5,1e6 # one knob, three values

A run is named by its folder (the newest run in it), by a log file, by a pattern, or with others by the
folder that holds theirs. The tables go to stdout, and with the curves and all the numbers to comparison.md,
comparison.png, comparison.html (one page with curves to point at, which opens from disk) and
comparison.json.

--run trains config files one after another and then compares them; --set with one value holds for all. The
same command again does only what is missing.

Runs are ranked at equal tokens, at equal training FLOPs and at equal training time, in bits per byte where
all have them; at equal time only if they ran on the same hardware with the same settings for it. Runs that
differ in nothing that decides what is learned, but for the seed, are one configuration: its mean, their
spread, and whether a gap is larger than that."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import alignment, sentences, showing, sweep, tables
from analysis.groups import config_diff, groups_of
from analysis.logs import LOSS
from analysis.page import page
from analysis.plot import plot
from analysis.rows import summarise
from analysis.runs import Run, ranking_key, read_runs
from analysis.selection import find_runs
from analysis.standings import standings
from analysis.sweep_plan import plan
from base import cli, fields, text
from base.errors import EXIT_INPUT, EXIT_STOPPED, InputError, require
from base.fields import SET, knob
from base.files import writable_folder, write_atomically, write_json
from base.text import check_utf8

COUNT, RUN = "[1, inf)", {"run": SET}


@dataclass(kw_only=True)
class CompareConfig:
    """What is compared, and where the comparison goes. Raises InputError for flags that exclude each
    other."""

    runs: list[str] = knob(
        [], "folders, logs or patterns, with --run config files; the flag may be left out", takes_words=True
    )
    latest: int | None = knob(None, "compare so many newest runs of out*/ and out*/*/", bounds=COUNT)
    out: str = knob("comparison", "the folder of the report")
    run: bool = knob(False, "train the config files first, as far as they are not trained yet")
    seeds: int | None = knob(None, "with --run: seeds of each, from 0; none: 1", bounds=COUNT, needs=RUN)
    tokens: int | None = knob(
        None, "with --run: train each on so many; none: its max_iters", bounds=COUNT, needs=RUN
    )
    set: list[str] = knob([], "with --run: key=value for all, or key=v1,v2 to run each value", needs=RUN)
    sweep_dir: str | None = knob(None, "with --run: the folder of the runs; none: out-sweep", needs=RUN)
    nproc_per_node: int | None = knob(
        None, "with --run: GPUs or processes of each; none: 1", bounds=COUNT, needs=RUN
    )

    def __post_init__(self) -> None:
        fields.check(self)
        check_utf8(out=self.out, sweep_dir=self.sweep_dir or "")
        if self.run and self.latest is not None:
            raise InputError("--run and --latest are two ways to choose the runs: give one")
        for name, value in vars(self).items():
            if value not in (None, []) and not fields.has_effect(type(self), name, vars(self)):
                raise InputError(
                    f"--{name} is for --run: compare_architectures.py --run CONFIG... --{name}=..."
                )


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, CompareConfig, work)


def work(
    config: CompareConfig,
    draw: Callable[[Sequence[Run]], bytes] = plot,
    launch: Callable[[Sequence[str]], tuple[int, bool]] = sweep.launch,
) -> int:
    """Trains what is to be trained, then compares. Returns the exit code."""
    code = 0
    if config.run:
        folder = Path(config.sweep_dir or "out-sweep")
        planned = plan(config.runs, config.set, config.seeds or 1, config.tokens, folder)
        out = folder_of_the_report(config.out)
        folders, code = sweep.execute(planned, config.nproc_per_node or 1, launch)
        if code in (EXIT_INPUT, EXIT_STOPPED):
            return code
        chains, left_out = find_runs([str(folder) for folder in folders], None)
    else:
        chains, left_out = find_runs(config.runs, config.latest)
        out = folder_of_the_report(config.out)
    for line in left_out:
        print(f"compare_architectures.py: left out: {text.printable(line)}", file=sys.stderr)
    compare(chains, out, draw)
    return code


def folder_of_the_report(out: str) -> Path:
    """Made before the first run is trained. Raises InputError where it cannot be written to."""
    folder = writable_folder(out, "out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compare(chains: Sequence[Sequence[Path]], out: Path, draw: Callable[[Sequence[Run]], bytes]) -> None:
    """The comparison of the runs, each given by its logs, to stdout and to files in `out`."""
    runs = read_runs(chains)
    key, groups = ranking_key(runs), groups_of(runs)
    common = alignment.common_end(runs, LOSS, "tokens")
    common_flops = alignment.common_end(runs, key, "FLOPs")
    rows = [summarise(run, common, common_flops) for run in runs]
    diff, leads = config_diff(groups), standings(runs)
    notes = sentences.notes_on(runs, common, groups, diff, leads)
    summary = sentences.on_the_leaders(leads)
    lines = [*summary, *notes]
    shown = [
        tables.table_of_runs(runs, rows, common, common_flops),
        tables.table_of_standings(leads),
        tables.table_of_differences(groups, diff),
    ]
    shown = [table for table in shown if len(table.rows) > 1]
    for i, table in enumerate(shown):
        print(end="\n" if i else "")
        showing.show(table)
    print(*(f"- {line}" for line in lines), sep="\n", flush=True)

    content = {
        "sorted_by": key,
        "common_tokens": common,
        "common_flops": common_flops,
        "notes": notes,
        "standings": leads,
        "summary": summary,
        "config_diff": {"configurations": [group.label for group in groups], "fields": diff},
        "runs": rows,
    }
    write_json(out / "comparison.json", content, indent=1)
    parts = [text.table(table.rows, table.left, markdown=True) for table in shown]
    parts += [
        "".join(f"- {text.in_markdown(line)}\n" for line in lines) + "\n![The curves](comparison.png)\n"
    ]
    write_atomically(out / "comparison.md", "\n\n".join(parts).encode())
    write_atomically(out / "comparison.html", page(runs, shown, lines).encode())
    require("matplotlib", f"{out}/comparison.png")
    write_atomically(out / "comparison.png", draw(runs))
    print(f"wrote {out}/comparison.md, comparison.json, comparison.html and comparison.png")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
