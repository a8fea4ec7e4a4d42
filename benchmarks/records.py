"""What the benchmarks share: flags, and results that say how they were made."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from base import cli
from base.fields import check
from base.files import write_json
from base.provenance import git_state, versions
from hardware.device import device_name

Config = TypeVar("Config")
RESULTS = Path(__file__).resolve().parent / "results"


def run(
    argv: Sequence[str], doc: str, kind: type[Config], work: Callable[[Config, Sequence[str]], None]
) -> int:
    """The whole of a benchmark: work(config, argv) measures, prints and, where it is asked to, stores."""

    def checked(config: Config) -> None:
        check(config)
        work(config, argv)

    return cli.run(argv, doc, kind, checked)


def write_result(name: str, script: str, argv: Sequence[str], device: torch.device, **fields: Any) -> Path:
    """results/<name>.json: the fields, with the command, the device, the versions and the commit."""
    record = {"command": shlex.join(["python", f"benchmarks/{script}", *argv]), **fields}
    record |= {
        "device": device_name(device),
        "versions": versions("transformers", "litgpt"),
        "git": git_state(),
    }
    file = RESULTS / f"{name}.json"
    write_json(file, record)
    print(f"wrote {file.relative_to(RESULTS.parents[1])}")
    return file
