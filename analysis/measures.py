"""Which figures may be ranked: those of one measurement, and beyond that bits per byte of one text.

A run says by what it was measured (training/measure.py). Logs of earlier versions do not; what they evaluated follows
from their configuration."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.logs import is_number
from base.text import human
from training.measure import IDENTITY

TOLD = IDENTITY | {"version": "version of nanofoundry"}  # in the order in which a difference is told


def measurement_of(start: Mapping[str, Any]) -> dict[str, Any]:
    """What a log's run_start says of its evaluations: each name of TOLD, and `text`, the digest of the held-out text
    where it was evaluated whole."""
    recorded = start.get("measurement")
    if isinstance(recorded, dict):
        return {name: plain(recorded.get(name)) for name in (*TOLD, "text", "bytes")}
    model, train = start["config"]["model"], start["config"]["train"]
    iters, batch_size = train.get("eval_iters"), train.get("batch_size")
    counted = type(iters) is int and type(batch_size) is int
    return {
        "split": start["data"].get("fingerprint") or named_only(start),
        "windows": iters * batch_size if counted else None,
        "block_size": plain(model.get("block_size")),
        "document_masking": plain(train.get("document_masking")),
        "dtype": plain(start["hardware"].get("dtype")),
        "version": "earlier",  # whose windows had another order
        "text": None,
        "bytes": None,
    }


def named_only(start: Mapping[str, Any]) -> str | None:
    """What the oldest logs say of their data: its name; with the rows of the vocabulary, lest it be another one."""
    dataset, rows = start["data"].get("dataset"), start["config"]["model"].get("vocab_size")
    return f"{dataset} of {plain(rows)} rows" if dataset else None


def plain(value: Any) -> Any:
    """What can be compared and told; None for what is nested or no size of anything."""
    return value if isinstance(value, str) or is_number(value) or isinstance(value, bool) else None


def alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two logs say the same, be it nothing."""
    return all(a[name] == b[name] for name in TOLD)


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether both are known, and one."""
    known = a["split"] is not None and (a["windows"] is not None or a["version"] == "earlier")
    return known and alike(a, b)


def same_text(measurements: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all of them read the same text: the whole of it, by any tokenizer, or the same windows of the same
    tokens."""
    first = measurements[0]
    if first["text"] is not None and all(m["text"] == first["text"] for m in measurements):
        return True
    where = ("split", "windows", "block_size", "version", "bytes")
    return (
        first["windows"] is not None
        and first["split"] is not None
        and all(m[name] == first[name] for m in measurements for name in where)
    )


def differing(measurements: Iterable[Mapping[str, Any]]) -> str:
    """In words: 'evaluated windows (12, 24) and dtype (bfloat16, float32)'."""
    said = []
    for name, words in TOLD.items():
        values = {m[name] for m in measurements}
        if len(values) > 1:
            some = sorted(human(v) if type(v) is int and v > 99_999 else str(v)[:12] for v in values)
            said.append(words if name == "split" else f"{words} ({', '.join(some)})")
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def why_not_ranked(measurements: Sequence[Mapping[str, Any]], by_bytes: bool) -> str | None:
    """What forbids to rank figures of these measurements; None where nothing does. `by_bytes`: they are bits per
    byte."""
    if all(same(measurements[0], m) for m in measurements):
        return None
    what = differing(measurements)
    if not what:
        return "a log does not say what it evaluated"
    if not by_bytes:
        return f"the runs differ in {what}: loss per token does not compare between them"
    if same_text(measurements):
        return None
    return (
        f"the runs differ in {what}, and bits per byte compare only over the same held-out text: evaluate the whole of it "
        "in all of them, with an --eval_tokens that is large enough"
    )
