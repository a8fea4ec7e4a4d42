"""Held-out bits per byte and multiple choice from a JSONL file, offline, of a run or of a Hugging Face model.

    python scripts/score.py --out_dir=out-quickstart --file=held_out.jsonl
    python scripts/score.py --model=exported --file=questions.jsonl --dtype=float32

A line is a document, {"text": "..."}, or a question, {"question": "...", "choices": ["...", "..."],
"answer": 0}. Prints one JSON object."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from base import cli, fields
from base.errors import InputError, reading
from base.fields import knob
from base.files import parse_json
from base.text import check_utf8
from hardware.device import select_device, select_dtype
from inference.models import find_model
from inference.scoring import Question, score_documents, score_questions
from tokenization.tokenizers import load_tokenizer


@dataclass(kw_only=True)
class ScoreConfig:
    file: str = knob("", "JSONL, a document or a question a line")
    out_dir: str = knob("out", "a run")
    step: int | None = knob(None, "of the checkpoint; none: the newest that verifies")
    model: str | None = knob(None, "a folder of Hugging Face's layout or a hub id, instead of out_dir")
    tokenizer: str | None = knob(None, "a name, folder or hub id; none: the run's or the model's own")
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the weights")
    context_length: int | None = knob(None, "none: the model's")
    batch_size: int = knob(8, "texts at a time", bounds="[1, inf)")
    limit: int | None = knob(None, "lines; none: all", bounds="[1, inf)")
    delimiter: str = knob(" ", "between a question and each choice")

    def __post_init__(self) -> None:
        fields.check(self)
        if not self.file:
            raise InputError("--file=FILE.jsonl is missing")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, ScoreConfig, score)


def score(config: ScoreConfig) -> None:
    device = select_device(config.device)
    dtype = select_dtype(config.dtype, device)
    texts, questions = read_lines(Path(config.file), config.limit)
    found = find_model(config.out_dir, config.step, config.model, config.tokenizer, config.context_length)
    tokenizer = load_tokenizer(found.tokenizer)
    if texts and found.eot_id is None:
        raise InputError(
            "this run's dataset has no end-of-text, which the first token of a document is predicted from"
        )
    model = found.load(device, dtype)
    record: dict[str, object] = {"model": str(found.path), "file": config.file}
    record["dtype"] = str(dtype).removeprefix("torch.")
    if texts:
        record["held_out"] = score_documents(model, tokenizer, found.eot_id, texts, config.batch_size)
    if questions:
        record["multiple_choice"] = score_questions(
            model, tokenizer, questions, config.batch_size, config.delimiter
        )
    print(json.dumps(record, indent=2))


def read_lines(file: Path, limit: int | None = None) -> tuple[list[str], list[Question]]:
    """The documents and the questions. Raises InputError that names the line for what is neither."""
    texts, questions = [], []
    with reading(file), open(file, "rb") as lines:
        for n, line in enumerate(lines, 1):
            if limit is not None and len(texts) + len(questions) == limit:
                break
            if not line.strip():
                continue
            try:
                row = parse_row(line)
            except InputError as error:
                raise InputError(f"{file}, line {n}: {error}") from None
            (texts if isinstance(row, str) else questions).append(row)
    if not texts and not questions:
        raise InputError(f"{file} is empty")
    return texts, questions


def parse_row(line: bytes) -> str | Question:
    """A document or a question. Raises InputError."""
    row = parse_json(line, "the line", "mend it")
    if not isinstance(row, dict) or ("text" in row) == ("choices" in row):
        raise InputError('wanted {"text": ...} or {"question": ..., "choices": [...], "answer": 0}')
    check_utf8(text=json.dumps(row, ensure_ascii=False))  # JSON can spell half a surrogate pair
    if "text" in row:
        if not isinstance(row["text"], str):
            raise InputError(f"text={row['text']!r} is not a string")
        return row["text"]
    question, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    strings = isinstance(choices, list) and all(isinstance(c, str) for c in (question, *choices))
    if not strings or type(answer) is not int or not question.strip():
        raise InputError("question must be a string, choices a list of strings, answer an index")
    return Question(question, tuple(choices), answer)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
