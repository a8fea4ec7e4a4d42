"""meta.json: what it holds, and what is refused in it."""

import json
import os
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_tokens import TOKENIZER, VOCAB, write_dataset, write_split

from base.errors import InputError
from tokens.format import read_meta, write_meta
from tokens.reader import open_tokens
from tokens.verify import verify

pytest_plugins = ["tokens_fixtures"]


def test_write_meta_refuses_ids_without_a_row(tmp_path):
    splits = {"train": write_split(tmp_path, "train", [np.array([1, 99])])}
    arguments = dict(tokenizer=TOKENIZER, splits=splits)
    with pytest.raises(InputError, match=r"train_00000\.bin: id 99 has no row in a vocabulary of 99"):
        write_meta(tmp_path, vocab_size=99, eot_id=0, **arguments)
    with pytest.raises(InputError, match="eot_id: id 100"):
        write_meta(tmp_path, vocab_size=100, eot_id=100, **arguments)
    assert not (tmp_path / "meta.json").exists()
    write_meta(tmp_path, vocab_size=100, eot_id=99, **arguments)


def test_read_meta_returns_what_write_meta_wrote(tmp_path):
    splits = {"train": write_split(tmp_path, "train", [np.array([1, 99])])}
    more = dict(source="a wörd", preparation={"identity": [1, None]})
    written = write_meta(tmp_path, vocab_size=100, tokenizer=TOKENIZER, eot_id=99, splits=splits, **more)
    assert read_meta(tmp_path) == written
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".json"] == ["meta.json"]


@pytest.mark.timeout(30)  # a pipe would block whoever opens it
@pytest.mark.parametrize(
    "put, message",
    [
        (os.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "is missing"),
        (lambda path: path.symlink_to(path), r"cannot be read \(.*symbolic links"),
        (lambda path: path.symlink_to("/proc/self/mem"), r"cannot be read \(Input/output error"),
        (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "is damaged or not JSON"),
        (lambda path: path.write_text('{"vocab_size": ' + "9" * 5000 + "}"), "is damaged or not JSON"),
        (lambda path: path.write_text('{"format_version": ' + "9" * 400 + "}"), "'format_version' is '9999"),
        (
            lambda path: path.write_text('{"format_version": 1e400}'),
            "'format_version' is 'inf', expected int",
        ),
        (lambda path: path.write_text('{"format_version": true}'), "'format_version' is 'True'"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 65 << 20), "bytes, more than"),
    ],
)
def test_what_is_not_a_meta_json_is_named(tmp_path, put, message):
    put(tmp_path / "meta.json")
    with pytest.raises(InputError, match=rf"^{tmp_path}/meta\.json.*{message}") as caught:
        read_meta(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["", ".", "..", "../x.bin", "a/", "/etc/passwd", "a\0b", "\ud800", "a\nb", "x" * 300]
)
def test_a_shard_is_a_name_beside_meta_json(toy_dataset, file):
    meta = json.loads((toy_dataset / "meta.json").read_text())
    meta["splits"]["train"]["shards"][0]["file"] = file
    (toy_dataset / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"is a path or not a name|File name too long") as caught:
        open_tokens(toy_dataset, "train", VOCAB)
    assert "\n" not in str(caught.value)


NESTED = "\ue000"  # stands for lists in lists, which json.dumps does not write so deep
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, VOCAB, 2**31, 2**32, 2**63 - 1, 2**63, 10**400, -(10**400), 10**4200]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["\0", "\ud800", "a\nb", "../x", "x" * 5000, "train", "[!-]*", "\x1b[2J"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just({})), max_size=3),
    st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.just([])), max_size=3),
    st.builds(lambda depth: NESTED * depth, st.sampled_from([1, 200, 900, 20_000])),
)


def places(value, path=()):
    """The paths to all values in nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(meta, path, change, wrong):
    """Changes a value in place; a later change may find its place gone."""
    *above, last = path
    try:
        for key in above:
            meta = meta[key]
        if change == "remove":
            del meta[last]
        elif change == "wrap":
            meta[last] = [meta[last]]
        elif change == "rename":
            meta[str(wrong)] = meta.pop(last)
        elif change == "repeat":
            meta.append(meta[last])
        else:
            meta[last] = wrong
    except (KeyError, IndexError, TypeError, AttributeError):
        return


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, its meta.json)"""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder)
    return folder, json.loads((folder / "meta.json").read_text())


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_mutation_of_meta_json_ends_in_anything_but_success_or_one_line(whole, data):
    folder, valid = whole
    meta = deepcopy(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(valid))[:40]))
        change = data.draw(st.sampled_from(["replace", "replace", "remove", "wrap", "rename", "repeat"]))
        mutate(meta, path, change, data.draw(WRONG))
    check_one_line(folder, meta)


@pytest.mark.parametrize("wrong", [10**400, -(10**400), 1e308, float("nan"), NESTED * 900, NESTED * 20_000])
def test_numbers_and_nesting_beyond_all_bounds(whole, wrong):
    """At every place, where the mutations above come by at random."""
    folder, valid = whole
    for path in list(places(valid))[:30]:
        meta = deepcopy(valid)
        mutate(meta, path, "replace", wrong)
        check_one_line(folder, meta)


def check_one_line(folder, meta):
    text = json.dumps(meta)
    nested = json.dumps(NESTED)[1:-1]
    for depth in (20_000, 900, 200, 1):
        text = text.replace(f'"{nested * depth}"', "[" * depth + "]" * depth)
    (folder / "meta.json").write_text(text)
    for act in (lambda: open_tokens(folder, "train", VOCAB), lambda: verify(folder)):
        try:
            found = act()
        except InputError as error:
            found = [str(error)]
        if isinstance(found, list):
            assert all("\n" not in line and line.isprintable() and len(line) < 1000 for line in found)
