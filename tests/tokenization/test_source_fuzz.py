"""Sources of any bytes under any name: rows, bad rows or one line; the same rows however they are read; any position a
place to resume from. FUZZ_SEED=N tries other bytes, FUZZ_CASES=N more of them."""

import bz2
import gzip
import json
import lzma
import os
import random
import re

import pytest
from backports import zstd
from source_formats import csv_of, jsonl, parquet, pretty, separated

from base.errors import InputError
from tokenization import cutting
from tokenization.file_source import FileSource
from tokenization.searching import COMPRESSIONS, ROW_SUFFIXES, TEXT_SUFFIXES, find_files

SEED, CASES = int(os.environ.get("FUZZ_SEED", 0)), int(os.environ.get("FUZZ_CASES", 250))
COMPRESS = {
    "": bytes,
    ".zst": zstd.compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
ROWS = [{"text": f"row {i} " + 'ä, "q"\n[{' * (i % 3), "meta": {"set": "s"}} for i in range(9)]
CONTENTS = [
    jsonl(ROWS),
    pretty(ROWS),
    json.dumps(ROWS).encode(),
    json.dumps(ROWS, indent=2).encode(),
    csv_of(ROWS),
    csv_of(ROWS, ";"),
    separated([row["text"] for row in ROWS]),
    parquet(ROWS),
    b"",
    b"\n \n",
    b"[" * 300 + b"]" * 300,
    b'{"text": ' * 50,
    b'"' * 77,
    bytes(range(256)) * 3,
]
PIECES = [*b'"\\{}[],\n\0', b"\r\n", b"\n\n", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80"]
PIECES = [bytes([piece]) if isinstance(piece, int) else piece for piece in PIECES]
PIECES += [b"text", b"null", b"1e999", b"9" * 400]


def damaged(content, random_):
    content = bytearray(content)
    for _ in range(random_.choice([0, 0, 1, 1, 2, 5])):
        at = random_.randrange(len(content) + 1)
        content[at : at + random_.choice([0, 1, 1, 40])] = random_.choice([b"", random_.choice(PIECES)])
    return bytes(content[: random_.randrange(len(content) + 1)] if random_.random() < 0.15 else content)


def encoded(content, random_):
    if random_.random() < 0.1:
        content = content.decode(errors="ignore").encode(
            random_.choice(["utf-16", "utf-16-le", "utf-32", "latin-1"]), "ignore"
        )
    return content


def read(file, position, options):
    """[(where, text, problem)], [positions], and the line with which it ended or None."""
    rows, positions = [], []
    try:
        for batch in FileSource([file], **options).batches(position):
            rows += [(row.where.rpartition(":")[2], row.text, row.problem) for row in batch.rows()]
            positions.append((len(rows), json.loads(json.dumps(batch.next_position))))
    except InputError as error:
        line = str(error)
        assert line.startswith(str(file)) and "\n" not in line and len(line) < 1000
        return rows, positions, line
    return rows, positions, None


@pytest.mark.parametrize("part", range(4))
def test_any_bytes_are_rows_or_one_line(tmp_path, monkeypatch, part):
    random_, read_whole, refused, seen = random.Random(SEED * 4 + part), 0, 0, 0
    for case in range(CASES // 4):
        compression = random_.choice(["", "", *COMPRESSIONS])
        suffix = random_.choice([*ROW_SUFFIXES, *TEXT_SUFFIXES[:2]])
        content = damaged(encoded(random_.choice(CONTENTS), random_), random_)
        if suffix == ".parquet":
            compression = ""
        else:
            content = COMPRESS[compression](content)
            content = damaged(content, random_) if random_.random() < 0.1 else content
        file = tmp_path / f"{case}{random_.choice([suffix, suffix.upper()])}{compression}"
        file.write_bytes(content)
        options = {"source_field": random_.choice([None, "meta.set"])}
        options |= random_.choice(
            [{}, {"separator": "\n"}, {"split_documents": 64}, {"split_documents": "paragraphs"}]
        )
        rows, _, line = read(file, None, options)
        seen, read_whole, refused = (
            seen + len(rows),
            read_whole + (line is None),
            refused + (line is not None),
        )
        assert not any("\n" in problem for _, _, problem in rows if problem)
        monkeypatch.setattr(cutting, "PIECE_BYTES", random_.choice([1, 13, 100]))
        again, positions, other = read(file, None, options | {"batch_bytes": random_.choice([1, 50, 1000])})
        monkeypatch.undo()
        assert (line is None) == (other is None)
        if line is None:
            assert again == rows
            for done, position in random_.sample(positions, min(3, len(positions))):
                assert read(file, position, options) == (rows[done:], read(file, position, options)[1], None)
    assert read_whole > CASES // 12 and refused > CASES // 40 and seen > 3 * CASES // 4


def test_any_tree_is_searched(tmp_path):
    """Odd names, links in circles and out, what is not a file: each file once, the same from run to run."""
    random_ = random.Random(SEED)
    names = [
        "a",
        "B",
        ".h",
        "._m",
        "x y",
        "a\nb",
        "a\x1b[2J",
        os.fsdecode(b"\xff"),
        "README",
        "*",
        "[x]",
        "ü",
        "e" * 60,
    ]
    for tree in range(12):
        root = tmp_path / str(tree)
        folders = [root]
        root.mkdir()
        for _ in range(random_.randrange(40)):
            suffix = random_.choice(["", ".txt", ".TXT", ".md", ".jsonl.gz", ".png", ".a\nb", ".\x1b[2J"])
            place = random_.choice(folders) / (random_.choice(names) + suffix)
            if os.path.lexists(place):
                continue
            kind = random_.choice(["file", "file", "file", "folder", "link", "hard", "pipe", "up"])
            if kind == "folder":
                place.mkdir()
                folders.append(place)
            elif kind == "pipe":
                os.mkfifo(place)
            elif kind in ("link", "up"):
                place.symlink_to(
                    random_.choice(
                        folders if kind == "up" else [tmp_path / "nowhere", place, *root.rglob("*")]
                    )
                )
            elif kind == "hard" and (
                files := [f for f in root.rglob("*") if f.is_file() and not f.is_symlink()]
            ):
                os.link(random_.choice(files), place)
            else:
                place.write_bytes(random_.choice([b"", b"---\n", b"x"]))
        for source in (root, f"{root}/**", f"{root}/**/*.txt"):
            try:
                found = find_files([source])
            except InputError as error:
                assert re.search(
                    "holds no|matches nothing|nothing to read|no known|cannot be read", str(error)
                )
                continue
            assert len({os.stat(file).st_ino for file in found.files}) == len(found.files) > 0
            assert not any(
                part.startswith(".") for file in found.files for part in file.relative_to(root).parts
            )
            assert found == find_files([source]) and found.in_words().isprintable()
