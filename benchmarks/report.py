"""Writes the tables of docs/PERFORMANCE.md, between its markers <!-- table NAME --> and <!-- end -->, from results/*.json.

python benchmarks/report.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import re
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "PERFORMANCE.md"
RESULTS = ROOT / "benchmarks" / "results"
SETTINGS = {"same": "one allocator setting for all", "started": "each as its users start it"}
CLOCKS = {"wall": "wall clock", "cpu": "processor time of one thread a side, on a machine with other work"}


def results(pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    return [(file, json.loads(file.read_text())) for file in sorted(RESULTS.glob(pattern))]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def source(file: Path, record: dict[str, Any]) -> str:
    commit = record["git"]["commit"][:7] if record["git"] else "no commit"
    return f"{record['device']}: `{record['command']}` ([result](../benchmarks/results/{file.name}), {commit})."


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
            cells = [f"{r['tokens/s'][n]:,} ({r['of matmul rate'][n]:.0%}, {r['extra GB'][n]:.2f} GB)" for n in names]
            rows.append([f"{mode} ({rate} GFLOP/s)", *cells, f"{min(r['ratio'].values()):.2f}"])
            precision = mode.split()[0]
            for kind, group in (("ours", names[:1]), ("theirs", names[1:])):
                best = max(r["tokens/s"][n] for n in group)
                bests[precision, kind] = max(best, bests.get((precision, kind), 0))
        lines += table(["mode (matmul rate)", *names, "ratio to the best peer"], rows) + [""]
        summary = [f"{p} {bests[p, 'ours'] / bests[p, 'theirs']:.2f}" for p, kind in bests if kind == "ours"]
        lines += [f"Our best mode over the peers' best: {', '.join(summary)}.", ""]
    return lines


def losses() -> list[str]:
    lines = []
    for file, record in results("loss_cpu_*.json"):
        c = record["config"]
        how = "compiled" if c["compile"] else "eager"
        lines += [f"{c['vocab_size']:,} words, {c['tokens']:,} tokens, {how}; {CLOCKS[c['clock']]}. {source(file, record)}", ""]
        rows = [[name, f"{r['ms']:,.0f}", f"{r['extra GB']:.2f}", f"{r['error']:.1e}"] for name, r in record["results"].items()]
        lines += table(["loss", "ms", "GB at the peak", "error of the gradients"], rows) + [""]
    return lines


TABLES = {"train_step": train_steps, "loss": losses}


def render(text: str) -> str:
    """The document with its tables made anew. Raises KeyError for a marker without a table."""

    def fill(match: re.Match) -> str:
        body = "\n".join(TABLES[match[1]]()).strip()
        return f"<!-- table {match[1]} -->\n\n{body}\n\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    DOCUMENT.write_text(render(DOCUMENT.read_text()))
