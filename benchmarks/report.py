"""Writes the tables of docs/PERFORMANCE.md, between its markers <!-- table NAME --> and <!-- end -->, from
results/*.json.

python benchmarks/report.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base import cli, text
from base.fields import knob

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "PERFORMANCE.md"
RESULTS = ROOT / "benchmarks" / "results"
SETTINGS = {"same": "one allocator setting for all", "started": "each as its users start it"}
CLOCKS = {"wall": "wall clock", "cpu": "processor time of one thread a side, on a machine with other work"}


def results(pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    return [(file, json.loads(file.read_text())) for file in sorted(RESULTS.glob(pattern))]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return text.table([header, *rows], left=[True] * len(header), markdown=True).splitlines()


def source(file: Path, record: dict[str, Any]) -> str:
    commit = record["git"]["commit"][:7] if record["git"] else "no commit"
    return (
        f"{record['device']}: `{record['command']}` ([result](../benchmarks/results/{file.name}), {commit})."
    )


def train_steps() -> list[str]:
    lines = []
    for file, record in results("train_step_cpu_*.json"):
        c = record["config"]
        lines += [
            f"Vocabulary {c['vocab_size']:,}, {c['batch_size']} x {c['block_size']} tokens, {SETTINGS[c['setting']]}; "
            f"medians of {c['rounds']} rounds, {CLOCKS[c['clock']]}. {source(file, record)}",
            "",
        ]
        names = ["nanofoundry", *c["vs"].split(",")]
        rows, bests = [], {}
        for mode, r in record["results"].items():
            rate = r["matmul GFLOP/s"]
            cells = [
                f"{r['tokens/s'][n]:,} ({r['of matmul rate'][n]:.0%}, {r['extra GB'][n]:.2f} GB)"
                for n in names
            ]
            most = (
                r["tokens/s"]["nanofoundry"] / r["of matmul rate"]["nanofoundry"]
            )  # were a step its matmuls alone
            rows.append([mode, f"{rate} GFLOP/s: {most:,.0f}", *cells, f"{min(r['ratio'].values()):.2f}"])
            precision = mode.split()[0]
            for kind, group in (("ours", names[:1]), ("theirs", names[1:])):
                best = max(r["tokens/s"][n] for n in group)
                bests[precision, kind] = max(best, bests.get((precision, kind), 0))
        lines += table(["mode", "matmul rate: tokens/s at most", *names, "ratio to the best peer"], rows) + [
            ""
        ]
        ratios = {p: bests[p, "ours"] / bests[p, "theirs"] for p, kind in bests if kind == "ours"}
        said = [f"{p} {ratio:.2f}" for p, ratio in ratios.items()]
        lines += [f"Our best mode over the peers' best: {', '.join(said)}.", ""]
    return lines


def losses() -> list[str]:
    lines = []
    for file, record in results("loss_cpu_*.json"):
        c = record["config"]
        how = "compiled" if c["compile"] else "eager"
        lines += [
            f"{c['vocab_size']:,} words, {c['tokens']:,} tokens, {how}; {CLOCKS[c['clock']]}. {source(file, record)}",
            "",
        ]
        rows = [
            [name, f"{r['loss']:.4f}", f"{r['ms']:,.0f}", f"{r['extra GB']:.2f}", f"{r['error']:.1e}"]
            for name, r in record["results"].items()
        ]
        lines += table(["", "loss", "ms", "GB at the peak", "error of the gradients"], rows) + [""]
    return lines


def profiles() -> list[str]:
    """What `train.py --profile` printed."""
    lines = []
    for file, record in results("profile_*.json"):
        lines += [source(file, record), "", "```", *record["table"], "```", ""]
    return lines


def attention() -> list[str]:
    lines = []
    for file, record in results("attention_*.json"):
        shapes = record["results"]
        lines += [
            f"ms of a forward and backward pass, {record['config']['dtype']}. {source(file, record)}",
            "",
        ]
        names = list(next(iter(shapes.values())))
        cell = lambda row: row.get("cannot") or f"{row['ms']:,.2f} ({row['GFLOP/s']:,} GFLOP/s)"  # noqa: E731
        lines += table(
            ["B x H:K x T x D", *names],
            [[shape, *(cell(rows[n]) for n in names)] for shape, rows in shapes.items()],
        )
        lines += [""]
    return lines


def time_to_loss() -> list[str]:
    lines = []
    for file, record in results("time_to_loss.json"):
        rows = [
            [
                name,
                f"{r['params']:,}",
                f"{r['tokens']:,}",
                f"{r['seconds']:,.0f}",
                f"{r['val bits per byte']:.3f}",
            ]
            for name, r in record["results"].items()
        ]
        ours, theirs = (record["results"][name] for name in ("nanofoundry", "nanoGPT"))
        in_time = ours["seconds"] <= record["config"]["share"] * theirs["seconds"]
        better = ours["val bits per byte"] <= theirs["val bits per byte"]
        reached = "reached" if in_time and better else "not reached"
        lines += [source(file, record), ""]
        lines += table(
            ["recipe", "parameters", "tokens", "seconds of training", "validation bits per byte"], rows
        )
        lines += ["", f"Its quality is {reached} in {ours['seconds'] / theirs['seconds']:.2f} of its time."]
    return lines


def strategies() -> list[str]:
    ((file, record),) = results("parallel.json")
    c, steps = record["config"], record["results"]["step of 2 ranks"]
    lines = [
        f"{record['parameters']:,} parameters ({c['n_layer']} layers of {c['n_embd']}, vocabulary {c['vocab_size']:,}), "
        f"{c['batch_size']} x {c['block_size']} tokens a rank, bf16 on fp32 weights, gloo, one thread a rank. MB of one rank, "
        f"theory in brackets; ms of a step, medians of {c['steps']} rounds in which all take turns. {source(file, record)}",
        "",
    ]
    rows = []
    for name, memory in record["results"]["memory"].items():
        cells = [f"{memory['measured_mb'][k]:,.0f}" for k in ("parameters", "gradients")]
        cells += [
            f"{memory['measured_mb'][k]:,.0f} ({memory['theory_mb'][k]:,.0f})" for k in ("optimizer", "peak")
        ]
        step = None if name.endswith("4 ranks") else steps[name.split(",")[0]]
        cells += [f"{step['step_ms']:,.0f}", f"{step['times_ddp']:.2f}"] if step else ["", ""]
        rows.append([name, *cells])
    return lines + table(["", "weights", "gradients", "optimizer", "peak", "step", "of DDP's"], rows)


def checkpoints() -> list[str]:
    ((file, record),) = results("checkpoint.json")
    one, two = record["results"]["1 rank"], record["results"]["2 ranks"]
    lines = [
        f"{one['mb']:.0f} MB of fp32 weights and AdamW state, ms, medians of {record['config']['rounds']}, taken in turn, an "
        f"fsync of every file and folder on each side. {source(file, record)}",
        "",
    ]
    saves = [[n, *(f"{r[k][n]:,.0f}" for r in (one, two) for k in ("save", "blocked"))] for n in one["save"]]
    loads = [[n, *(f"{r['load'][n]:,.0f}" for r in (one, two))] for n in one["load"]]
    lines += table(["save", "1 rank", "training blocked", "2 ranks", "training blocked"], saves) + [""]
    return lines + table(["load, from the page cache", "1 rank", "2 ranks"], loads)


def gpu() -> list[str]:
    lines = []
    for file, record in results("mfu_*.json"):
        c = record["config"]
        precision = "bf16" if c["fp8"] == "none" else f"FP8 ({c['fp8']})"
        lines += [
            f"{precision}, {c['tokens']:,} tokens a step, {c['steps']} steps. {source(file, record)}",
            "",
        ]
        rows = []
        for name, r in record["results"].items():
            if "failed" in r:
                rows.append([name, r["failed"], "", "", ""])
                continue
            mfu = "n/a" if r["mfu"] is None else f"{r['mfu']:.1%}"
            rows.append(
                [name, f"{r['tokens/s']:,}", mfu, f"{r['of matmul rate']:.0%}", f"{r['memory GB']:.1f}"]
            )
        lines += table(["", "tokens/s", "MFU", "of the matmul rate", "GB"], rows) + [""]
    return lines or ["No figure is stored: no GPU has been available yet."]


TABLES = {
    "train_step": train_steps,
    "profile": profiles,
    "loss": losses,
    "attention": attention,
    "time_to_loss": time_to_loss,
    "gpu": gpu,
    "strategies": strategies,
    "checkpoints": checkpoints,
}


def render(document: str) -> str:
    """The document with its tables made anew. Raises KeyError for a marker without a table."""

    def fill(match: re.Match) -> str:
        body = "\n".join(TABLES[match[1]]()).strip()
        return f"<!-- table {match[1]} -->\n\n{body}\n\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", fill, document, flags=re.DOTALL)


@dataclass(kw_only=True)
class ReportConfig:
    check: bool = knob(False, "write nothing, and say whether the document is what would be written")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, ReportConfig, report)


def report(config: ReportConfig) -> None:
    now = DOCUMENT.read_text()
    if config.check:
        print("it is" if render(now) == now else "it is not: run python benchmarks/report.py")
    else:
        DOCUMENT.write_text(render(now))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
