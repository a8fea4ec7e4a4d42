"""A byte-level BPE trained on the text that it is for."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from base.errors import InputError, require
from base.text import check_utf8, shown
from tokenization.batches import Source, limited
from tokenization.documents import is_val
from tokenization.file_source import FileSource
from tokenization.job import Job
from tokenization.tokenizer_files import END_OF_TEXT, TokenizerFiles, describe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOT = "<|endoftext|>"
# The pieces inside which BPE merges, as those of GPT-4's tokenizer: an English contraction, in any case; letters
# with one character before them that is none of letter, digit, line break; up to three digits; punctuation with a
# space before and line breaks after it; white space up to its last line break; white space but for the last
# character, which belongs to the word after it; other white space
PIECES = "|".join(
    [
        r"(?i:'(?:d|ll|m|re|s|t|ve))",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
TRAINING_BYTES = 256 << 20  # of text: the merges of a larger sample hardly differ
LONG_RUN = re.compile(r"\S{1000}|\s{1000}")  # of what has no end for BPE, whose time grows with its square


def train(
    texts: Iterable[str], vocab_size: int, pieces: str, special_tokens: Sequence[str], purpose: str
) -> "Tokenizer":
    """A byte-level BPE of at most vocab_size tokens: the special ones, then the 256 bytes, then the merges. The
    same texts give the same bytes."""
    tk = require("tokenizers", purpose)
    tokenizer = tk.Tokenizer(tk.models.BPE())
    split = tk.pre_tokenizers.Split(tk.Regex(pieces), "isolated")
    byte_level = tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tk.pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = tk.decoders.ByteLevel()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def parse_special_tokens(given: Sequence[str], vocab_size: int) -> tuple[str, ...]:
    """The special tokens, of which several may be joined by commas; our own <|endoftext|> comes first where none
    of them ends a document. Raises InputError."""
    tokens = tuple(token.strip() for text in given for token in text.split(","))
    for token in tokens:
        check_utf8(special_tokens=token)
        if len(token) < 2 or tokens.count(token) > 1:  # single characters stand for the bytes
            raise InputError(f"--special_tokens: {shown(token)} is there twice or not of two characters")
    if not set(tokens) & set(END_OF_TEXT):
        tokens = (EOT, *tokens)
    if vocab_size < (least := 256 + len(tokens)):
        raise InputError(
            f"--train_tokenizer={vocab_size} cannot hold 256 bytes and {len(tokens)} special tokens: at least {least}"
        )
    return tokens


def train_tokenizer(
    source: Source, vocab_size: int, special_tokens: Sequence[str], job: Job
) -> TokenizerFiles:
    """A tokenizer of vocab_size rows for the source, trained on what it gives to train, up to TRAINING_BYTES
    spread over its files. Raises InputError, as the source does, and where there is no text."""
    texts = TrainingTexts(source, job)
    tokenizer = train(texts, vocab_size, PIECES, special_tokens, "--train_tokenizer")
    if not texts.text_bytes:
        why = texts.problem or "the source has no text"
        raise InputError(
            f"--train_tokenizer: {why}, so there is nothing to train on: is it the right source?"
        )
    eot = next(token for token in special_tokens if token in END_OF_TEXT)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": eot,
        "unk_token": None,
        "pad_token": None,
        "model_max_length": 1_000_000_000,
        "clean_up_tokenization_spaces": False,
    }
    companions = {"tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False).encode()}
    found = describe(f"byte_bpe_{vocab_size}", tokenizer.to_str().encode(), companions)
    return replace(found, vocab_size=vocab_size)


class TrainingTexts:
    """The texts of a source that are not held out; `text_bytes` counts those that were taken, `problem` is that of
    the first bad row."""

    def __init__(self, source: Source, job: Job) -> None:
        self.source, self.job, self.text_bytes = source, job, 0
        self.problem: str | None = None

    def __iter__(self) -> Iterator[str]:
        self.text_bytes = 0
        parts: list[Source] = [self.source]
        if isinstance(self.source, FileSource) and self.job.limit is None:
            parts = [replace(self.source, files=[file]) for file in self.source.files]
        for i, part in enumerate(parts):
            room = (TRAINING_BYTES - self.text_bytes) // (len(parts) - i)  # what one leaves is the others'
            yield from self._taken(part, self.text_bytes + max(1, room))

    def _taken(self, part: Source, until: int) -> Iterator[str]:
        for batch in limited(part.batches(None), 0, self.job.limit):
            for row in batch.rows():
                if row.problem and self.problem is None:
                    self.problem = f"{row.where}: {row.problem}"
                content = row.text.encode(errors="replace")
                if row.problem or is_val(content, self.job.val_fraction):
                    continue
                self.text_bytes += len(content)
                yield from cut_runs(content.decode())
                if self.text_bytes >= until:
                    return


def cut_runs(text: str) -> Iterator[str]:
    """The text, cut inside runs of a thousand characters without a change between space and other."""
    begin = 0
    for run in LONG_RUN.finditer(text):
        yield text[begin : run.end()]
        begin = run.end()
    yield text[begin:]
