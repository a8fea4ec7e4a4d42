"""Files are whole or not there; what is read is read with suspicion."""

import json
import os
import signal

import pytest

from base import files
from base.errors import InputError, MissingFile
from base.files import (
    alone_in,
    count_entry,
    describe,
    entry,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    size_of,
    write_atomically,
    write_json,
)
from base.text import brief


def test_a_file_holds_the_old_content_or_the_new(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"ä": 1})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": 1} and "ä" in file.read_text(
        encoding="utf-8"
    )

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            write_atomically(file, b"new")
    assert json.loads(file.read_bytes()) == {"ä": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
    assert describe(file) == files.write_durably(file, [file.read_bytes()])


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_now_is_not(tmp_path):
    file = tmp_path / "a[1].json"
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.fsync = lambda descriptor: (os.write(write, b"x"), signal.pause())
        write_atomically(file, b"never")
    os.read(read, 1)
    (partial,) = tmp_path.iterdir()
    write_atomically(file, b"1")
    assert set(tmp_path.iterdir()) == {partial, file}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for other in (".a[1].json.bak", ".a1.json.0123456789ab", "a[1].json.0123456789ab"):
        (tmp_path / other).write_bytes(b"theirs")
    write_atomically(file, b"2")
    assert file.read_bytes() == b"2" and not partial.exists() and len(list(tmp_path.iterdir())) == 4
    os.close(read)
    os.close(write)


BAD = {
    "no JSON": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "nested too deep": b"[" * 100_000 + b"]" * 100_000,
    "a number of many digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "no object": b"[1]",
    "nothing": b"",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_not_a_json_object_is_one_line(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("missing", "link", "."):
        for read in (read_json, read_text, read_bytes):
            with pytest.raises(InputError, match=r"is missing|cannot be read|is not a file"):
                read(tmp_path / name)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8 at byte 3"):
        read_text(tmp_path / "latin")


def test_an_entry_has_the_expected_type():
    record = parse_json('{"n": 3, "yes": true, "list": []}', "here")
    assert entry(record, "n", int, "here", "mend it") == 3 and entry(record, "yes", bool, "here", "mend it")
    for key, kind, said in (
        ("m", int, "lacks 'm'"),
        ("yes", int, "expected int"),
        ("list", dict, "expected dict"),
    ):
        with pytest.raises(InputError, match=f"here.*{said}.*mend it"):
            entry(record, key, kind, "here", "mend it")
    with pytest.raises(InputError, match="lacks"):
        entry([], "m", int, "here", "mend it")


def test_a_folder_has_one_worker(tmp_path):
    said = r"another prepare\.py is at work in"
    with (
        alone_in(tmp_path, "prepare.py"),
        pytest.raises(InputError, match=said),
        alone_in(tmp_path, "prepare.py"),
    ):
        pass
    with alone_in(tmp_path, "prepare.py"):
        pass


@pytest.mark.timeout(30)  # a pipe would block whoever opens it
@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_not_a_file_is_not_opened(tmp_path, put):
    put(tmp_path / "x.json")
    for read in (size_of, read_json, read_bytes):
        with pytest.raises(InputError, match=r"x\.json is not a file: "):
            read(tmp_path / "x.json")


def test_the_size_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert size_of(tmp_path / "x") == 3
    with pytest.raises(MissingFile, match="y is missing: look again"):
        size_of(tmp_path / "y", "look again")


def test_json_may_be_bounded(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json", max_bytes=8) == {"a": 1}
    with pytest.raises(InputError, match="has 8 bytes, more than"):
        read_json(tmp_path / "x.json", max_bytes=7)


def test_a_value_from_outside_is_shown_briefly():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, "a\nb" * 10**5, 10**4000, {"a": [1] * 10**5}, "\ud800\x1b", None):
        shown = brief(value)
        assert len(shown) <= 200 and shown.isprintable()
    assert (brief("many"), brief(-5), brief("abc", 2)) == ("'many'", "'-5'", "'ab'")


def test_a_number_of_things():
    assert count_entry({"n": 0}, "n", "f", "again") == 0 and count_entry({"n": 2**63 - 1}, "n", "f", "again")
    for value in (-1, 2**63, 1.0, True, "1", None, []):
        with pytest.raises(InputError, match=r"f: 'n' is .*, expected int.*: again"):
            count_entry({"n": value}, "n", "f", "again")
