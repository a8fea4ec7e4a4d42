"""A validation split of whatever there is: one text file, ten files, pieces and paragraphs."""

import json
import random
import re

import pytest
from preparing import TEXTS, custom, files_of, ids_of, refused
from source_formats import source_of, texts_of

from base.errors import InputError
from tokenization import cutting
from tokenization.documents import fraction_up_to, is_below, place_of
from tokenization.file_source import parse_split_documents
from tokenization.pipeline import why_empty
from tokenization.splitting import Paragraphs, Pieces
from tokens.format import read_meta

pytest_plugins = ["preparing_fixtures"]

BOOK = "\n\n".join(" ".join(TEXTS[i : i + 3]).replace("\n", " ") for i in range(0, 600, 3))


@pytest.fixture
def prepare_files(tmp_path, toy_folder, in_this_process):
    """prepare_files({"a.txt": text}, *flags) -> meta.json of out/, prepared at the default fraction."""

    def call(files, *flags, out="out"):
        (tmp_path / "in").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / "in" / name).write_text(text, newline="")
        common = f"--source={tmp_path / 'in'}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / out}"
        assert custom(*common, "--workers=1", *flags) == 0
        return read_meta(tmp_path / out)

    return call


@pytest.mark.parametrize("cut", ["2000", "paragraphs"])
def test_one_text_file_gets_a_validation_split(prepare_files, toy_folder, tmp_path, cut, capsys):
    meta = prepare_files({"book.txt": BOOK}, f"--split_documents={cut}")
    assert meta["splits"]["val"]["documents"] >= 1 < meta["splits"]["train"]["documents"]
    documents = sum(split["documents"] for split in meta["splits"].values())
    assert documents == 200 if cut == "paragraphs" else documents > len(BOOK.encode()) / 2000
    sizes = sum(split["text_bytes"] for split in meta["splits"].values())
    paragraphs = [text.rstrip() for text in BOOK.encode().split(b"\n\n")]
    assert sizes == (sum(map(len, paragraphs)) if cut == "paragraphs" else len(BOOK.encode()))


def test_one_text_file_as_one_document_is_refused_with_what_helps(
    prepare_files, toy_folder, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/book.txt").write_text(BOOK)
    flags = f"--source={tmp_path / 'in'}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}"
    for more in ([], ["--val_fraction=0.9"]):
        line = refused(capsys, *flags, "--workers=1", *more)
        assert "the source is one document" in line and "--split_documents=65536" in line
    assert custom(*flags, "--workers=1", "--split_documents=paragraphs") == 0


@pytest.mark.parametrize("n_files", [2, 3, 10])
def test_few_files_at_the_default_fraction(prepare_files, n_files, tmp_path, capsys):
    files = {f"{i}.txt": f"file {i}: {TEXTS[i + 5]}" for i in range(n_files)}
    meta = prepare_files(files)
    assert [meta["splits"][s]["documents"] for s in ("train", "val")] == [n_files - 1, 1]
    places = {text: place_of(text.encode()) for text in files.values()}
    held_out = min(files.values(), key=places.get)
    assert meta["splits"]["val"]["text_bytes"] == len(held_out.encode())
    printed = capsys.readouterr().out
    assert f"val_fraction=0.005 holds out none of {n_files} documents" in printed
    assert "--val_fraction alone would have held out nothing" in printed
    assert re.search(r"val has \d+ tokens: an evaluation needs more than block_size", printed)
    assert prepare_files(files) == meta  # the same command again
    assert "is complete already" in capsys.readouterr().out


def test_a_kill_between_the_two_readings(prepare_files, tmp_path, monkeypatch):
    files = {f"{i}.txt": f"file {i}: {TEXTS[i + 5]}" for i in range(10)}
    prepare_files(files)
    from tokenization import pipeline

    class Killed(BaseException):
        pass

    real, calls = pipeline.Preparation, []

    def killed(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 2:
            raise Killed
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pipeline, "Preparation", killed)
        prepare_files(files, out="killed")
    progress = json.loads((tmp_path / "killed/progress.json").read_text())
    assert progress["rows"] == 0 and 0.005 < progress["val_fraction"] < 1
    prepare_files(files, out="killed")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "out")


def test_documents_that_are_all_alike(toy_folder, tmp_path, in_this_process, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "the same"}\n' * 30)
    flags = f"--source={tmp_path / 'in.jsonl'}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}"
    assert "none of 30 documents is left for train" in refused(capsys, *flags, "--workers=1")
    assert not list((tmp_path / "out").glob("*.bin"))
    assert "are held out" in why_empty(7, ["train"], 0.9)


def test_the_least_fraction_holds_out_that_document_alone():
    for _ in range(2000):
        place = random.getrandbits(64)
        assert is_below(place, fraction_up_to(place))
    for place in (0, 1, 2**53, 2**64 - 1, 2**63 + 1):
        assert is_below(place, fraction_up_to(place)) and 0 < fraction_up_to(place) <= 1
    assert not is_below(2**63, fraction_up_to(2**62))


@pytest.mark.parametrize("text", ["", "0", "63", "-5", "1e6", "lines", "paragraph", "9" * 5000, str(1 << 27)])
def test_split_documents_is_checked(text):
    with pytest.raises(
        InputError, match=r"--split_documents=.* is neither 'paragraphs' nor a number of bytes"
    ):
        parse_split_documents(text)


def test_separator_and_split_documents_exclude_each_other(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="pass one of them"):
        source_of(tmp_path / "a.txt", split_documents=100)
    with pytest.raises(InputError, match="--separator is longer than 1024 bytes"):
        source_of(tmp_path / "a.txt", separator="ж" * 513)


def test_paragraphs():
    content = b"\n\nOne\nline two\n\n    indented\n \t\r\n\r\n\n  Three\r\n\r\nfour\n\n\n"
    assert Paragraphs().documents(content) == [b"One\nline two", b"    indented", b"  Three", b"four"]
    assert Paragraphs().documents(b"one\n  alone\n") == [b"one\n  alone"]
    assert Paragraphs().documents(b"\n \n") == Paragraphs().documents(b"") == []


def test_pieces_end_where_they_read_well():
    n = 100
    text = "".join(
        random.Random(0).choice(["wort ", "слово ", "\n", "\n\n", "\U0001f642", "x" * 70])
        for _ in range(3000)
    )
    pieces = Pieces(n).documents(text.encode())
    assert b"".join(pieces) == text.encode()
    assert all(n // 2 < len(piece) <= n for piece in pieces[:-1]) and all(piece.decode() for piece in pieces)
    assert Pieces(n).documents(b"a" * 60 + b"\n\n" + b"b" * 60)[0] == b"a" * 60 + b"\n\n"
    assert Pieces(n).documents(b"a" * 60 + b"\n" + b"b" * 20 + b" " + b"b" * 60)[0] == b"a" * 60 + b"\n"
    assert Pieces(n).documents(b"a" * 60 + b" " + b"b" * 60)[0] == b"a" * 60 + b" "
    assert Pieces(n).documents("ж".encode() * 80)[0] == "ж".encode() * 50
    assert Pieces(n).documents(b"\xbf" * 250)  # not UTF-8: it ends


@pytest.mark.parametrize("cut", [64, "paragraphs"])
@pytest.mark.parametrize("seed", range(8))
def test_cuts_do_not_depend_on_the_size_of_reads(tmp_path, monkeypatch, cut, seed):
    random_ = random.Random(seed)
    text = "\ufeff" * (seed % 2) + "".join(
        random_.choice(["a b", "ж", "\n", "\n", " ", "\r\n", "x" * 30]) for _ in range(300)
    )
    (tmp_path / "a.txt").write_text(text, newline="")
    splitter = Pieces(64) if cut == 64 else Paragraphs()
    whole = [piece.decode() for piece in splitter.documents(text.encode())]
    whole[0] = whole[0].removeprefix("\ufeff")
    for piece in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(cutting, "PIECE_BYTES", piece)
        source = source_of(
            tmp_path / "a.txt",
            separator=None,
            split_documents=cut,
            batch_bytes=random_.choice([1, 90, 4 << 20]),
        )
        assert texts_of(source) == whole
        done = 0
        for batch in list(source.batches(None)):
            done += batch.n_rows
            assert texts_of(source, batch.next_position) == whole[done:]


def test_a_paragraph_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "MAX_DOCUMENT_BYTES", 500)
    monkeypatch.setattr(cutting, "PIECE_BYTES", 37)
    (tmp_path / "a.txt").write_text("before\n\n" + "x" * 2000 + "\n\n\nafter\n\n" + "y" * 700)
    source = source_of(tmp_path / "a.txt", separator=None, split_documents="paragraphs", batch_bytes=50)
    rows = [(row.text, bool(row.problem)) for batch in source.batches(None) for row in batch.rows()]
    assert rows == [("before", False), ("", True), ("after", False), ("", True)]


def test_ids_of_the_pieces_are_those_of_the_texts(prepare_files, tmp_path, toy):
    prepare_files({"book.txt": BOOK}, "--split_documents=500")
    ids = ids_of(tmp_path / "out", "train")
    assert (ids == toy.eot_id).sum() == read_meta(tmp_path / "out")["splits"]["train"]["documents"]
