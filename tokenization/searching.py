"""Which files a corpus consists of: those that paths, folders and patterns name, each once, and what was left out.

found = find_files(["corpus/", "more/**/*.jsonl.zst"], ext=[".tex"])
found.files             # sorted by path
found.in_words()        # "12 files were read: …; left out: …"
"""

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from base.errors import InputError, MissingFile, reading
from base.text import shown
from tokenization.cutting import on_a_line

ROW_SUFFIXES = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".py")
COMPRESSIONS = (".zst", ".gz", ".bz2", ".xz")
KNOWN = f"{', '.join((*ROW_SUFFIXES, *TEXT_SUFFIXES))}, plain or {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}"
OTHER_TEXT = "--ext=SUFFIX reads others as text"
CARD_MARK = b"---"  # a dataset card begins with metadata between two lines of it
CARD_BESIDE = ("lines", "csv", "parquet")  # formats of a dataset that is published with a card
SHOWN_SUFFIXES = 12
PLURALS = {  # of the reasons for leaving something out that are not suffixes
    "hidden name": "hidden names",
    "dataset card": "dataset cards",
    "compressed copy of a file beside it": "compressed copies of files beside them",
    "link to a folder that was read": "links to folders that were read",
}


def parse_ext(given: Sequence[str]) -> tuple[str, ...]:
    """Suffixes as people write them (py, .py, several with commas) in one form. Raises InputError."""
    suffixes = [s.strip().lower() for text in given for s in text.split(",")]
    found = tuple(dict.fromkeys(s if s.startswith(".") else f".{s}" for s in suffixes))
    for suffix in found:
        if not re.fullmatch(r"\.[^\s./\\]+", suffix):
            raise InputError(f"--ext={shown(suffix)} is not a suffix such as .tex")
        if suffix in COMPRESSIONS or suffix in (".tar", ".zip", ".7z", ".tgz"):
            raise InputError(f"--ext={suffix} is not of text: unpack the files, or name the suffix before it")
    return found


def format_of(file: Path, ext: Sequence[str] = ()) -> str | None:
    """lines, json, csv, parquet or text by the file's name, in any case, one compression aside; None for
    anything else. `ext` are more suffixes of text."""
    suffix, compressed = suffixes_of(file)
    if suffix in ROW_SUFFIXES:
        return None if compressed and suffix == ".parquet" else ROW_SUFFIXES[suffix]
    return "text" if suffix in TEXT_SUFFIXES or suffix in ext else None


def suffixes_of(file: Path) -> tuple[str, str]:
    """(.jsonl, .zst) of a.JSONL.zst; the second is empty where nothing is compressed."""
    compressed = file.suffix.lower() if file.suffix.lower() in COMPRESSIONS else ""
    return Path(file.stem if compressed else file.name).suffix.lower(), compressed


@dataclass
class Found:
    """Files, and what was left out: how many by suffix or by another reason."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def in_words(self) -> str:
        read = Counter("".join(suffixes_of(file)) for file in self.files)
        line = f"{_files(len(self.files))} read: {_counts(read)}"
        n = sum(self.left_out.values())
        return f"{line}; {n:,} left out: {_counts(self.left_out)}" if n else f"{line}; none left out"


def _files(n: int) -> str:
    return f"{n:,} file{'s were' if n != 1 else ' was'}"


def _counts(counts: Counter[str]) -> str:
    common = counts.most_common()
    shown_ones = [(n, PLURALS.get(what, what) if n > 1 else what) for what, n in common[:SHOWN_SUFFIXES]]
    parts = [f"{n:,} {on_a_line(what[:40])}" for n, what in shown_ones]
    rest = sum(n for _, n in common[SHOWN_SUFFIXES:])
    return ", ".join([*parts, f"{rest:,} others"] if rest else parts)


def find_files(sources: Sequence[str | Path], ext: Sequence[str] = ()) -> Found:
    """The files that paths, folders (searched through, links to folders included) and glob patterns (**
    included) name: each once, however many patterns and links lead to it, sorted by path.

    A file that is named is read whatever it is called; of folders and patterns hidden names, dataset cards,
    compressed copies of what lies beside them and other formats are left out and counted. Raises MissingFile
    where a source names nothing, InputError where a named file is of no known format."""
    search = _Search(ext)
    for source in map(str, sources):
        if not source.strip():
            raise InputError("--source= is empty: name files, folders or a pattern")
        search.add(source)
    return search.found()


class _Search:
    def __init__(self, ext: Sequence[str]) -> None:
        self.ext = ext
        self.named: dict[tuple[int, int], Path] = {}  # by device and inode: a link is the file it leads to
        self.searched: dict[tuple[int, int], Path] = {}
        self.left_out: dict[str, str] = {}  # why, by path

    def add(self, source: str) -> None:
        """What one path, folder or pattern names."""
        place = os.path.expanduser(source)
        if os.path.isdir(place):
            if not self._take(walk(Path(place), self.left_out)):
                others = Counter(self.left_out.values())
                what = f"; it holds {_counts(others)}" if others else ""
                raise MissingFile(f"{Path(place)} holds no {KNOWN} file{what}: {OTHER_TEXT}")
        elif os.path.isfile(place):
            file = Path(place)
            if format_of(file, self.ext) is None:
                raise InputError(f"{file} is of no known format: {KNOWN}; {OTHER_TEXT}")
            _keep(self.named, file)
        else:
            self._add_pattern(source, place)

    def _add_pattern(self, source: str, place: str) -> None:
        matches = list(_matching(place, self.left_out))
        files = [file for file in matches if os.path.isfile(file)]
        folders = [folder for folder in matches if os.path.isdir(folder)]
        if matches and not files and not folders:
            raise MissingFile(
                f"source {source!r} is not a file that can be read: is it a link to something that is gone?"
            )
        if not matches:
            raise MissingFile(f"source {source!r} is no file, no folder, and matches nothing: check the path")
        taken = self._take(files)
        for folder in folders:
            taken += self._take(walk(folder, self.left_out))
        if not taken:
            raise InputError(f"what {source!r} matches is of no known format: {KNOWN}; {OTHER_TEXT}")

    def _take(self, files: Iterator[Path] | list[Path]) -> int:
        """Keeps the files of a known format; how many those are."""
        n = 0
        for file in files:
            if format_of(file, self.ext) is None:
                suffix = "".join(suffixes_of(file))
                self.left_out[str(file)] = suffix or "without a suffix"
            else:
                _keep(self.searched, file)
                n += 1
        return n

    def found(self) -> Found:
        named = set(self.named.values())
        searched = {path for key, path in self.searched.items() if key not in self.named}
        for path in _cards(searched, self.ext):
            self.left_out[str(path)] = "dataset card"
        for path in _copies(searched | named) & searched:
            self.left_out[str(path)] = "compressed copy of a file beside it"
        files = sorted(named | {path for path in searched if str(path) not in self.left_out})
        for path in files:
            self.left_out.pop(str(path), None)
        left_out = Counter(self.left_out.values())
        if not files:
            raise MissingFile(
                f"the sources hold nothing to read but {_counts(left_out)}: name what is to be read"
            )
        return Found(files, left_out)


def _keep(files: dict[tuple[int, int], Path], file: Path) -> None:
    with reading(file):
        status = os.stat(file)
    key = status.st_dev, status.st_ino
    files[key] = min(file, files.get(key, file))


def walk(folder: Path, left_out: dict[str, str]) -> Iterator[Path]:
    """The files below a folder, those of linked folders too, in order; each folder once, so that a link that
    leads back ends there. What is hidden, or neither a file nor a folder, goes to left_out."""
    waiting, seen = [folder], set()
    while waiting:
        folder = waiting.pop()
        with reading(folder):
            status = os.stat(folder)
            names = sorted(os.listdir(folder))
        if (status.st_dev, status.st_ino) in seen:
            left_out[str(folder)] = "link to a folder that was read"
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        for name in names:
            path = folder / name
            if name.startswith("."):  # .git, .ipynb_checkpoints, ._ of a Mac
                left_out[str(path)] = "hidden name"
            elif os.path.isdir(path):
                below.append(path)
            elif os.path.isfile(path):
                yield path
            else:
                left_out[str(path)] = "neither file nor folder"
        waiting += reversed(below)


def _matching(pattern: str, left_out: dict[str, str]) -> Iterator[Path]:
    """Files and folders by a pattern; with ** files alone, found by a walk, as a link to a folder above would
    lead glob in circles."""
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if "**" in part), None)
    if first is None:
        yield from map(Path, sorted(glob.glob(pattern)))
        return
    root = os.path.join(".", *parts[:first])
    for folder in [root] if os.path.isdir(root) else sorted(glob.glob(root)):
        if os.path.isdir(folder):
            for file in walk(Path(folder), left_out):
                if _fits(file.relative_to(folder).parts, parts[first:]):
                    yield file


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are as the parts of a pattern say, of which ** is any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return _fits(names, pattern[1:]) or (bool(names) and _fits(names[1:], pattern))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _cards(files: set[Path], ext: Sequence[str]) -> Iterator[Path]:
    """README.md that describe a dataset: they begin with metadata, or rows lie beside or below them."""
    with_rows: set[Path] = set()
    for file in files:
        if format_of(file, ext) in CARD_BESIDE:
            with_rows.update(file.parents)
    for file in files:
        if file.name.lower() == "readme.md" and (file.parent in with_rows or _begins_with_metadata(file)):
            yield file


def _begins_with_metadata(file: Path) -> bool:
    with reading(file), open(file, "rb") as f:
        return f.readline(16).strip() == CARD_MARK


def _copies(files: set[Path]) -> set[Path]:
    """Compressed files that lie beside another one of the same name, plain or otherwise compressed."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        compressed = suffixes_of(file)[1]
        by_name.setdefault(str(file)[: len(str(file)) - len(compressed)], []).append(file)
    return {copy for same in by_name.values() for copy in sorted(same)[1:]}
