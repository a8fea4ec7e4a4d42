"""What the benchmarks share: flags, and results that say how they were made."""

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from base import cli
from base.cli import parse_value
from base.errors import InputError
from base.fields import check, check_bounds, knob
from base.files import write_json
from base.provenance import git_state, versions
from hardware.device import device_name

Config = TypeVar("Config")
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(kw_only=True)
class ModelShape:
    """Qwen3's: 6 layers, 384 wide, 6:3 heads of 64."""

    n_layer: int = knob(6, "of the model", bounds="[1, inf)")
    n_embd: int = knob(384, "of the model", bounds="[1, inf)")
    n_head: int = knob(6, "of the model", bounds="[1, inf)")
    num_key_value_heads: int = knob(3, "of the model", bounds="[1, inf)")
    head_dim: int = knob(64, "of the model", bounds="[1, inf)")
    d_ff: int = knob(1152, "of the model", bounds="[1, inf)")
    vocab_size: int = knob(8192, "of the model", bounds="[1, inf)")


def run(
    argv: Sequence[str], doc: str, kind: type[Config], work: Callable[[Config, Sequence[str]], int | None]
) -> int:
    """The whole of a benchmark: work(config, argv) measures, prints, stores its result where the flags ask
    for it, and returns an exit code or None."""

    def checked(config: Config) -> int | None:
        check(config)
        return work(config, argv)

    return cli.run(argv, doc, kind, checked)


def numbers(flag: str, text: str) -> list[int]:
    """The positive whole numbers of a flag such as --batch_sizes=1,8. Raises InputError."""
    found = [parse_value(flag, word, int) for word in text.split(",")]
    for number in found:
        check_bounds(flag, number, "[1, inf)")
    return found


def names(flag: str, text: str, known: Collection[str]) -> list[str]:
    """The words of a flag such as --shapes=a,b, each of which must be known. Raises InputError."""
    found = text.split(",")
    for name in found:
        if name not in known:
            raise InputError(f"--{flag}: {name!r} is none of {', '.join(known)}")
    return found


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
