"""What the benchmarks share: flags, and results that say how they were made."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

from base.cli import parse_flags
from base.errors import InputError
from base.fields import check
from base.provenance import git_state, versions
from hardware.device import device_name

Config = TypeVar("Config")
RESULTS = Path(__file__).resolve().parent / "results"


def config_from_flags(kind: type[Config], argv: Sequence[str]) -> Config:
    """A benchmark's dataclass from its command line. Raises InputError for what is no flag of it, or no
    value of a flag."""
    words, flags = parse_flags(argv, get_type_hints(kind))
    if words:
        raise InputError(f"{words[0]!r} is no flag")
    config = kind(**flags)
    check(config)
    return config


def write_result(name: str, script: str, argv: Sequence[str], device: torch.device, **fields: Any) -> Path:
    """results/<name>.json: the fields, with the command, the device, the versions and the commit."""
    record = {"command": shlex.join(["python", f"benchmarks/{script}", *argv]), **fields}
    record |= {
        "device": device_name(device),
        "versions": versions("transformers", "litgpt"),
        "git": git_state(),
    }
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {file.relative_to(RESULTS.parents[1])}")
    return file
