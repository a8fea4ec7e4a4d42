"""What a model thinks of given text: bits per byte of documents it has not seen, and which of several
answers it holds for the likeliest. Works offline, on any tokenizer; both figures compare across tokenizers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from base.errors import InputError
from inference.text import encode
from model_builder import ConfigurableGPT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HEAD_ROWS = 1024  # positions whose logits are held at a time: with 152 k words 0.6 GB in fp32


@dataclass(frozen=True)
class Question:
    question: str
    choices: tuple[str, ...]
    answer: int  # index of the right one

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(self.choices):
            raise InputError("a question needs two choices or more, none of them empty")
        if not 0 <= self.answer < len(self.choices):
            raise InputError(
                f"answer={self.answer} is not an index of {len(self.choices)} choices (the first is 0)"
            )


@torch.inference_mode()
def log_likelihoods(
    model: ConfigurableGPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 8
) -> list[float]:
    """ln p(continuation | context), in nats, of each pair of ids. A context that does not fit is cut at its
    beginning. Raises InputError for an empty context or continuation, for a continuation longer than
    block_size, and for ids outside the vocabulary."""
    model.eval()
    block_size, device = model.config.block_size, model.token_embedding.weight.device
    for context, continuation in pairs:
        if not context or not continuation:
            raise InputError(
                "an empty context or continuation has no likelihood: begin a text with the end-of-text id"
            )
        if len(continuation) > block_size:
            raise InputError(
                f"a continuation of {len(continuation)} tokens exceeds block_size={block_size}: shorten it"
            )
        outside = [i for i in (*context, *continuation) if not 0 <= i < model.config.vocab_size]
        if outside:
            raise InputError(
                f"token id {outside[0]} is outside the model's vocabulary of {model.config.vocab_size}"
            )
    # The last token is predicted, never read
    rows = [
        ([*context, *continuation][-block_size - 1 :], len(continuation)) for context, continuation in pairs
    ]
    totals = [0.0] * len(rows)
    longest_first = sorted(
        range(len(rows)), key=lambda i: -len(rows[i][0])
    )  # rows of a batch are of like length
    for start in range(0, len(rows), batch_size):
        batch = longest_first[start : start + batch_size]
        T = len(rows[batch[0]][0]) - 1
        padded = torch.tensor(
            [[*rows[i][0][:-1], *[0] * (T + 1 - len(rows[i][0]))] for i in batch], device=device
        )
        x = model.features(padded)  # [B, T, C]; what pads comes after what counts
        row_of, at, wanted = [], [], []
        for row, i in enumerate(batch):
            ids, n = rows[i]
            row_of += [row] * n
            at += range(len(ids) - 1 - n, len(ids) - 1)
            wanted += ids[-n:]
        x, targets = x[row_of, at], torch.tensor(wanted, device=device)
        for begin in range(0, len(wanted), HEAD_ROWS):
            part = slice(begin, begin + HEAD_ROWS)
            nll = F.cross_entropy(
                F.linear(x[part], model.head_weight).float(), targets[part], reduction="none"
            )
            for row, value in zip(row_of[part], nll.tolist(), strict=True):
                totals[batch[row]] -= value
    return totals


def score_documents(
    model: ConfigurableGPT, tokenizer: "Tokenizer", eot_id: int, texts: Sequence[str], batch_size: int = 8
) -> dict[str, float]:
    """Bits per byte, each text by itself after an end-of-text. Every token is predicted once: where a text
    is longer than block_size, from at least the half of that before it."""
    block_size = model.config.block_size
    pairs, n_tokens = [], 0
    for text in texts:
        ids = [eot_id, *encode(tokenizer, text)]
        n_tokens += len(ids) - 1
        begin, end = 1, 1 + block_size
        while begin < len(ids):
            pairs.append((ids[max(0, end - 1 - block_size) : begin], ids[begin:end]))
            begin, end = end, end + max(1, block_size // 2)
    n_bytes = sum(len(text.encode()) for text in texts)
    if not n_tokens:
        raise InputError("the documents are empty: there is nothing to score")
    nats = -sum(log_likelihoods(model, pairs, batch_size))
    return {
        "documents": len(texts),
        "bytes": n_bytes,
        "tokens": n_tokens,
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "nats_per_token": nats / n_tokens,
    }


def score_questions(
    model: ConfigurableGPT,
    tokenizer: "Tokenizer",
    questions: Sequence[Question],
    batch_size: int = 8,
    delimiter: str = " ",
) -> dict[str, float]:
    """The share of questions whose right choice is the likeliest after question + delimiter: by its
    probability, and by its probability per byte, which does not favour short ones. They are `acc` of
    lm-evaluation-harness and, in ASCII, its `acc_norm`, which divides by characters; with its boundary
    between question and choice: spaces belong to the choice, and both are encoded as one text."""
    pairs, right, right_per_byte = [], 0, 0
    for q in questions:
        stem = q.question.rstrip()
        n = len(encode(tokenizer, stem))
        for choice in q.choices:
            ids = encode(tokenizer, q.question + delimiter + choice)
            pairs.append((ids[:n], ids[n:]))
    likelihoods = iter(log_likelihoods(model, pairs, batch_size))
    for q in questions:
        of_choice = [next(likelihoods) for _ in q.choices]
        per_byte = [value / len(choice.encode()) for value, choice in zip(of_choice, q.choices, strict=True)]
        right += of_choice.index(max(of_choice)) == q.answer
        right_per_byte += per_byte.index(max(per_byte)) == q.answer
    n = len(questions)
    return {
        "questions": n,
        "accuracy": right / n,
        "accuracy_per_byte": right_per_byte / n,
        "standard_error": math.sqrt(right / n * (1 - right / n) / n),
        "chance": sum(1 / len(q.choices) for q in questions) / n,
    }
