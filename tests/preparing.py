"""Small corpora in every format, and preparations in this process, for the tests of tokenization/."""

import gzip
import io
import itertools
import json
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from backports import zstd

from tokenization import command

ROOT = Path(__file__).resolve().parents[1]


SEPARATOR = "\n<<<>>>\n"


PIECES = [
    "The quick brown fox doesn't jump; it'LL run. ",
    "Съешь же ещё этих мягких французских булок. ",
    "天地玄黄,宇宙洪荒。日月盈昃、辰宿列张。",
    "いろはにほへと ちりぬるを 조선말 한글 ",
    "نص عربي مع أرقام ١٢٣ שלום עולם ",
    "नमस्ते दुनिया สวัสดีชาวโลก ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7\U0001f44d\U0001f3fd\u2764\ufe0f ",
    "<|endoftext|><|im_start|>user\n<|im_end|> <think>no</think> <|fim_prefix|></s> ",
    "e\u0301 \u212b \u1100\u1161 q\u0323\u0307 \u0958 \ufb01 ",  # NFC changes these, or must not
    "def f(x):\n\treturn {'a': [1, 22, 333, 4444]}  # \r\n\n\n",
    "https://example.org/?q=%20&n=12345678901234567890 \x00\x7f\u00a0\u2028\ufeff",
    "           \n \n\t\t\n",
]


TEXTS = [f"text {i} " + PIECES[i % len(PIECES)] * (i % 4) for i in range(600)]


PREPARE = [sys.executable, str(ROOT / "data/custom/prepare.py")]


def set_of(i):
    return f"set{i % 3}"


def jsonl(texts, first=0):
    rows = ({"meta": {"set": set_of(i)}, "text": text} for i, text in enumerate(texts, first))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(texts, first=0):
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    rows = [{"meta": {"set": set_of(i)}, "text": text} for i, text in enumerate(texts, first)]
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=1_111)
    return buffer.getvalue()


def frames(content, size=1 << 20):
    return b"".join(zstd.compress(content[i : i + size]) for i in range(0, len(content), size))


def separated(texts, first=0):
    return "".join(text + SEPARATOR for text in texts).encode()


FORMATS = {  # and the engine that reads each here
    "jsonl": (jsonl, "fastokens"),
    "jsonl.zst": (lambda texts, first: frames(jsonl(texts, first)), "gigatoken"),
    "jsonl.gz": (lambda texts, first: gzip.compress(jsonl(texts, first), 1), "tokenizers"),
    "parquet": (parquet, "auto"),
    "txt": (separated, "fastokens"),
    "txt.zst": (lambda texts, first: frames(separated(texts, first)), "gigatoken"),
}


def ids_of(folder, split):
    return np.concatenate([np.fromfile(file, np.uint32) for file in sorted(folder.glob(f"{split}_*.bin"))])


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_files(folder, name, texts, parts=3):
    """The texts in `parts` files of unlike size."""
    folder.mkdir(parents=True, exist_ok=True)
    make = FORMATS[name][0]
    cuts = [0, *(len(texts) * (i + 1) // (parts + 2) for i in range(parts - 1)), len(texts)]
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        (folder / f"part_{i}.{name}").write_bytes(make(texts[begin:end], begin))
    return sorted(folder.iterdir())


class InThisProcess:
    """In place of ProcessPoolExecutor."""

    def __init__(self, workers, context, initializer=lambda: None, initargs=()):
        initializer(*initargs)

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def custom(*flags):
    """data/custom/prepare.py in this process."""
    return command.run("doc", ROOT / "data/custom", [str(flag) for flag in flags])


def refused(capsys, *flags, run=custom):
    """The one line on stderr with which flags are refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.strip() and "B/s" not in line]  # a progress bar
    assert len(lines) == 1, lines
    return lines[0]
