"""What a preparation is asked to do: a Job, on which the bytes of the dataset depend, and Settings, on which
they do not. The identity of a dataset is that of its source, its tokenizer and its job."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from base.fields import check, knob
from tokenization.batches import Source
from tokenization.documents import SPLIT_KEY
from tokenization.tokenizer_files import TokenizerFiles


@dataclass(frozen=True)
class Job:
    """What the bytes of a dataset depend on, besides its source and tokenizer."""

    val_fraction: float = knob(
        0.005, "the part of the documents that is held out, at least one", bounds="(0, 1)"
    )
    shard_tokens: int = knob(100_000_000, "tokens in a shard", bounds="[1, inf)")
    limit: int | None = knob(
        None, "rows to take, of each task where there are several; none: all", bounds="[1, inf)"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Settings:
    """How a preparation is done."""

    workers: int | None = knob(None, "tokenizing processes; none: one for each core", bounds="[1, 1024]")
    engine: str = knob(
        "auto",
        "what tokenizes; auto is the fastest that is right",
        choices=("auto", "tokenization.engines:ENGINES"),
    )
    max_bad_rows: int = knob(100, "bad rows that are left out; with one more it stops", bounds="[0, inf)")
    commit_interval: float = knob(20.0, "seconds of work that a kill may cost", bounds="[0, inf]")

    def __post_init__(self) -> None:
        check(self)


def identity_of(source: Source, tokenizer: TokenizerFiles, job: Job) -> dict[str, Any]:
    """What the bytes of a dataset depend on, as JSON. Two preparations of one identity give the same bytes."""
    return {
        "source": _condensed(source.identity),
        "tokenizer_sha256": tokenizer.sha256,
        "eot_id": tokenizer.eot_id,
        "val_fraction": job.val_fraction,
        "shard_tokens": job.shard_tokens,
        "limit": job.limit,
        "split_key": SPLIT_KEY.decode(),
    }


def _condensed(identity: dict[str, Any]) -> dict[str, Any]:
    """A source's identity without its list of files, which may have a hundred thousand: their number, size
    and digest."""
    if "files" not in identity:
        return identity
    files = identity["files"]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    condensed = {"count": len(files), "bytes": sum(size for _, size in files), "sha256": digest}
    return {**identity, "files": condensed}


def differences(own: Any, other: dict[str, Any]) -> str:
    """Where the identity that a folder holds differs from another, in words."""
    if not own or not isinstance(own, dict):
        return "another preparation"
    return "another " + " and another ".join(name for name in other if own.get(name) != other[name])
