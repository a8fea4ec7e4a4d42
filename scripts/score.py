"""Held-out bits per byte and multiple choice from a JSONL file, offline, of a run or of a Hugging Face model.

    python scripts/score.py --out_dir=out-quickstart --file=held_out.jsonl
    python scripts/score.py --model=exported --file=questions.jsonl --dtype=float32

A line is a document, {"text": "..."}, or a question, {"question": "...", "choices": ["...", "..."],
"answer": 0}. Prints one JSON object. The fields of ScoreConfig are the flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_type_hints

from base.cli import parse_flags
from base.errors import InputError, input_errors
from base.fields import check
from base.text import check_utf8
from hardware.device import select_device, select_dtype
from inference.models import find_model
from inference.scoring import Question, score_documents, score_questions
from tokenization.tokenizers import load_tokenizer


@dataclass(kw_only=True)
class ScoreConfig:
    file: str = ""  # JSONL
    out_dir: str = "out"  # a run
    step: int | None = None  # None: the newest checkpoint that verifies
    model: str | None = None  # a folder of Hugging Face's layout or a hub id, instead of out_dir
    tokenizer: str | None = None  # a name, folder or hub id; None: the run's or the model's own
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_length: int | None = None  # None: the model's
    batch_size: int = 8
    limit: int | None = None  # lines; None: all
    delimiter: str = " "  # between a question and each choice

    def __post_init__(self) -> None:
        check(self)
        if not self.file:
            raise InputError("--file=FILE.jsonl is missing")
        for name in ("batch_size", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with input_errors():
        words, flags = parse_flags(argv, get_type_hints(ScoreConfig))
        if words:
            raise InputError(f"{words[0]!r} is no flag: did you mean --file={words[0]!r}?")
        config = ScoreConfig(**flags)
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
        record: dict[str, object] = {
            "model": str(found.path),
            "file": config.file,
            "dtype": str(dtype).removeprefix("torch."),
        }
        if texts:
            record["held_out"] = score_documents(model, tokenizer, found.eot_id, texts, config.batch_size)
        if questions:
            record["multiple_choice"] = score_questions(
                model, tokenizer, questions, config.batch_size, config.delimiter
            )
    print(json.dumps(record, indent=2))
    return 0


def read_lines(file: Path, limit: int | None = None) -> tuple[list[str], list[Question]]:
    """The documents and the questions. Raises InputError that names the line for what is neither."""
    texts, questions = [], []
    with open(file, encoding="utf-8") as lines:
        for n, line in enumerate(lines, 1):
            if limit is not None and len(texts) + len(questions) == limit:
                break
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or ("text" in row) == ("choices" in row):
                    raise InputError(
                        'wanted {"text": ...} or {"question": ..., "choices": [...], "answer": 0}'
                    )
                check_utf8(text=json.dumps(row, ensure_ascii=False))  # JSON can spell half a surrogate pair
                if "text" in row:
                    if not isinstance(row["text"], str):
                        raise InputError(f"text={row['text']!r} is no string")
                    texts.append(row["text"])
                    continue
                question, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
                strings = isinstance(choices, list) and all(isinstance(c, str) for c in (question, *choices))
                if not strings or type(answer) is not int or not question.strip():
                    raise InputError("question must be a string, choices a list of strings, answer an index")
                questions.append(Question(question, tuple(choices), answer))
            except ValueError as error:
                raise InputError(f"{file}, line {n}: {error}") from None
    if not texts and not questions:
        raise InputError(f"{file} is empty")
    return texts, questions


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
