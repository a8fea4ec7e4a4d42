"""Run logs -> one fair table, the curves, and the numbers behind them.

    python compare_architectures.py --latest 3                     # the newest runs of out*/ and out*/*/
    python compare_architectures.py out-gpt2 'out-qwen3/run_*.jsonl' out-sweep --out=comparison
    python compare_architectures.py --run config/compare_tiny_*.py --seeds 3 --tokens 1e6   # trains first what is missing
    python compare_architectures.py --run config/quickstart.py --set rope_theta=1e4,5e5,1e6 # one knob, three values

A run is named by its folder (the newest run in it), by a log file, by a pattern, or with others by the
folder that holds theirs. The tables go to stdout, and with the curves and all the numbers to comparison.md,
comparison.png, comparison.html (one page with curves to point at, which opens from disk) and
comparison.json in --out (default comparison/).

--run trains config files (x the values of each --set key=v1,v2, x --seeds) to the same number of --tokens,
one run after another, into folders of --sweep_dir (default out-sweep/); --set with one value holds for all.
The same command again does only what is missing. --nproc_per_node=N uses N GPUs or processes for each run.

Runs are ranked at equal tokens, at equal training FLOPs and at equal training time, in bits per byte where
all have them. Runs that differ in nothing but the seed are one configuration: its mean, their spread, and
whether a gap is larger than that."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from analysis import align, report, sweep
from analysis.page import page
from analysis.plot import plot
from analysis.runs import LOSS, find_runs, ranking_key, read_runs
from base.cli import parse_flags
from base.errors import InputError, MissingPackage, input_errors

FLAGS = {"latest": int, "out": str, "run": bool, "seeds": int, "tokens": int, "set": list[str], "sweep_dir": str,
         "nproc_per_node": int}  # fmt: skip
EXIT_STOPPED = 75


def write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return 0
    code = 0
    with input_errors():
        words, flags = parse_flags(argv, FLAGS)
        if not flags.get("run"):
            if given := [name for name in FLAGS if name in flags and name not in ("latest", "out", "run")]:
                raise InputError(
                    f"--{given[0]} is for --run: compare_architectures.py --run CONFIG... --{given[0]}=..."
                )
            chains, left_out = find_runs(words, flags.get("latest"))
        elif "latest" in flags:
            raise InputError("--run and --latest are two ways to choose the runs: give one")
        else:
            folder = Path(flags.get("sweep_dir", "out-sweep"))
            planned = sweep.plan(
                words, flags.get("set", []), flags.get("seeds", 1), flags.get("tokens"), folder
            )
            if (n := flags.get("nproc_per_node", 1)) < 1:
                raise InputError(f"--nproc_per_node={n} must be at least 1")
        out = Path(flags.get("out", "comparison"))
        try:
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            raise InputError(
                f"--out={out} cannot be written to ({error.strerror}): name another folder"
            ) from error
        if flags.get("run"):
            folders, code = sweep.execute(planned, n)
            if code in (2, EXIT_STOPPED):
                return code
            chains, left_out = find_runs([str(folder) for folder in folders], None)
    for line in left_out:
        print(f"compare_architectures.py: left out: {line}", file=sys.stderr)
    compare(chains, out)
    return code


def compare(chains: Sequence[Sequence[Path]], out: Path) -> None:
    """The comparison of the runs, each given by its logs, to stdout and to files in `out`."""
    runs = read_runs(chains)
    key, groups = ranking_key(runs), align.groups_of(runs)
    common, common_flops = align.common_end(runs, LOSS, "tokens"), align.common_end(runs, key, "FLOPs")
    rows = [report.summarise(run, common, common_flops) for run in runs]
    diff, leads = align.config_diff(groups), align.standings(runs)
    notes = report.notes_on(runs, rows, common, groups, diff, leads)
    sentences = report.standings_lines(leads)
    tables = [
        report.cells(runs, rows, common, common_flops),
        report.standings_cells(leads),
        report.diff_cells(groups, diff),
    ]
    tables = [grid for grid in tables if len(grid) > 1]
    for i, grid in enumerate(tables):
        print(end="\n" if i else "")
        report.show(grid)
    print(*(f"- {line}" for line in (*sentences, *notes)), sep="\n", flush=True)

    content = {
        "sorted_by": key,
        "common_tokens": common,
        "common_flops": common_flops,
        "notes": notes,
        "standings": leads,
        "summary": sentences,
        "config_diff": {"configurations": [group.label for group in groups], "fields": diff},
        "runs": rows,
    }
    write_atomically(out / "comparison.json", (json.dumps(content, indent=1) + "\n").encode())
    listed = "".join(f"- {line}\n" for line in (*sentences, *notes))
    text = "\n\n".join(report.table(grid, markdown=True) for grid in tables)
    write_atomically(out / "comparison.md", f"{text}\n\n{listed}\n![The curves](comparison.png)\n".encode())
    write_atomically(out / "comparison.html", page(runs, tables, [*sentences, *notes]).encode())
    with input_errors():
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise MissingPackage(f"{out}/comparison.png needs matplotlib: pip install matplotlib") from error
    write_atomically(out / "comparison.png", plot(runs))
    print(f"wrote {out}/comparison.md, comparison.json, comparison.html and comparison.png")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
