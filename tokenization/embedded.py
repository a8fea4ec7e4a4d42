"""The corpus that is always there: the source of the running Python's standard library, with a byte-level
BPE of its own.

No download, about 10 MB of text that people wrote, and a model of a few million parameters shows on it
within minutes that it learns. The text depends on the Python that runs (meta.json's `source` names it), so
compare runs on one Python."""

import hashlib
import os
import platform
import sysconfig
import tempfile
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import InputError, writing
from base.files import writable_folder, write_durably
from tokenization import byte_bpe, engines
from tokenization.byte_bpe import EOT
from tokenization.documents import SPLITS, end_documents, is_val
from tokens.format import write_meta
from tokens.writer import ShardWriter

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VAL_FRACTION = 0.05  # of the files; with this key 4.9 % of the bytes of Python 3.11.7
ENCODE_BATCH = 64  # documents

# Tests repeat themselves. Of the 1.4 MB of encodings/ 1.2 MB are generated character maps, and pydoc_data/
# is one generated file larger than the whole of val: both would teach a table, not a language.
EXCLUDED_FOLDERS = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data",
}  # fmt: skip

# The pieces inside which BPE merges. A line break and the indentation after it are one piece, so that a
# line's depth is one token; a line's last token never holds its line break, so that a prompt may end where
# a line does. On val, in bytes per token: GPT-2's pattern 3.40, cl100k's 3.42, this one 3.46; punctuation
# merged with the line break after it 3.57, but then the colon of a prompt `def f():` is a token that
# training hardly saw.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*\n[ \t]*|\s+"


def collect(root: str | Path) -> list[tuple[str, str]]:
    """(relative posix path, text) of every Python source under root, sorted by path, without what is not
    worth learning.

    Text is decoded as PEP 263 says, line ends are "\\n". Files that are empty or cannot be decoded are left
    out."""
    root = Path(root)
    documents = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in EXCLUDED_FOLDERS and not s.startswith("config-")]
        for name in files:
            # _sysconfigdata_*.py and config-*/ are written by the build and hold this machine's paths
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                text = _read_source(path)
                if text.strip():
                    documents.append((path.relative_to(root).as_posix(), text))
    return sorted(documents)


def _read_source(path: Path) -> str:
    try:
        # UTF-8, a byte order mark, or what the coding line says; universal newlines
        with tokenize.open(path) as f:
            text = f.read()
        text.encode()
        return text
    except (OSError, SyntaxError, UnicodeError):  # tokenize.open says SyntaxError for an unknown encoding
        return ""


def split_texts(root: Path) -> dict[str, list[str]]:
    """The texts of each split: a file is held out by its path alone, so that none changes sides when
    another comes or goes. Raises InputError where root has too little in it."""
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path, text in collect(root):
        texts["val" if is_held_out(path) else "train"].append(text)
    if not all(texts.values()):
        counts = f"{len(texts['train'])} training and {len(texts['val'])} held-out files"
        raise InputError(
            f"{root} gives {counts} of Python source, both must be there: is the standard library installed?"
        )
    return texts


def is_held_out(path: str) -> bool:
    return is_val(path.encode(errors="surrogateescape"), VAL_FRACTION)


def train_tokenizer(texts: list[str], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE of at most vocab_size tokens: `<|endoftext|>` is 0, then the 256 bytes, then the
    merges."""
    return byte_bpe.train(texts, vocab_size, PIECES, [EOT], "preparing the embedded corpus")


def prepare(folder: str | Path, vocab_size: int = 4096, source: str | Path | None = None) -> dict[str, Any]:
    """Writes the dataset (shards, tokenizer.json, meta.json) into folder and returns what meta.json holds.

    `source` is the root of a tree of Python files; None is the standard library. The same source gives the
    same bytes. What is in folder stays as it is until everything is ready; meta.json comes last, so a
    killed preparation leaves none, and is simply repeated. Raises InputError if source has too little in it
    or folder cannot be written, MissingPackage without the package tokenizers."""
    folder = writable_folder(str(folder))
    if vocab_size < 257:
        raise InputError(f"vocab_size={vocab_size} cannot hold 256 bytes and {EOT}: at least 257")
    texts = split_texts(Path(source or sysconfig.get_paths()["stdlib"]))
    tokenizer = train_tokenizer(texts["train"], vocab_size)
    tokenizer_json = tokenizer.to_str().encode()
    tokenizer_record = {
        "name": f"python_stdlib_bpe_{vocab_size}",
        "length": tokenizer.get_vocab_size(),
        "sha256": hashlib.sha256(tokenizer_json).hexdigest(),
    }
    eot_id = tokenizer.token_to_id(EOT)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that two runs may prepare at once (they write the same bytes) and Ctrl-C
        # leaves nothing.
        with tempfile.TemporaryDirectory(prefix=".preparing-", dir=folder) as building:
            splits = _write_shards(
                building, texts, engines.ENGINES[engines.REFERENCE](tokenizer_json), eot_id
            )
            write_durably(Path(building, "tokenizer.json"), [tokenizer_json])
            meta = write_meta(
                building,
                vocab_size=vocab_size,
                tokenizer=tokenizer_record,
                eot_id=eot_id,
                splits=splits,
                source=str(source or f"standard library of Python {platform.python_version()}"),
            )
            _replace_all(Path(building), folder)
    return meta


def _write_shards(
    folder: str, texts: dict[str, list[str]], encode: engines.Encode, eot_id: int
) -> dict[str, dict[str, Any]]:
    """The entries of meta.json's splits."""
    splits = {}
    for split, documents in texts.items():
        writer = ShardWriter(folder, split)
        for i in range(0, len(documents), ENCODE_BATCH):
            batch = documents[i : i + ENCODE_BATCH]
            ids, lengths = end_documents(*encode(batch), eot_id)
            writer.add(ids, sum(len(text.encode()) for text in batch), lengths)
        splits[split] = writer.finish()
    return splits


def _replace_all(building: Path, folder: Path) -> None:
    """Renames the files of building into folder, meta.json last."""
    old, new = folder / "meta.json", building / "meta.json"
    # An old meta.json must not vouch for new shards. An equal one does, and another run may be about to
    # read it.
    if old.exists() and old.read_bytes() != new.read_bytes():
        old.unlink()
    for path in sorted(building.iterdir(), key=lambda p: p.name == "meta.json"):
        os.replace(path, folder / path.name)
