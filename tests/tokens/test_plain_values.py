"""meta.pkl: plain values of every protocol, and nothing else."""

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base.errors import InputError
from tokens.nanogpt import read_nanogpt_meta
from tokens.plain_values import plain_values
from tokens.reader import open_tokens

pytest_plugins = ["tokens_fixtures"]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


class Innocent:
    pass


def doubled(n):
    """A list and n tuples, of which each holds what is before it twice."""
    return b"]\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(n))


HOSTILE = {
    "a call": pickle.dumps({"vocab_size": 97, "x": Hostile()}),
    "a call, protocol 0": pickle.dumps(Hostile(), protocol=0),
    "an old call": b"(S'hostile'\nios\nmkdir\n.",
    "an object": pickle.dumps({"vocab_size": 97, "x": Innocent()}),
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Phostile\n.",
    "a memo of 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a truncated one": pickle.dumps({"vocab_size": 97})[:-3],
    "not a pickle": b"not a pickle",
    "empty": b"",
    "two million open lists": b"\x80\x04" + b"]" * 2_000_001 + b".",
    "a key of tuples in tuples": b"\x80\x04})" + b"\x85" * 300_000 + b"Ns.",
    "a key of 2^200 tuples": b"\x80\x04})\x94"
    + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(200))
    + b"Ns.",
    "keys of one hash": b"\x80\x04}" + pickle.dumps(2**61 - 1)[2:-1] + b"Ns.",
    "a number of many digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a LONG of many digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a LONG4": b"\x8b\x00\x00\x00\x40.",
    "a string of 2^63 bytes": b"\x8d" + b"\xff" * 7 + b"\x7f.",
    "a memo that is empty": b"\x80\x04h\x05.",
    "a memo of nothing": b"\x80\x04\x94.",
    "a mark too many": b"\x80\x04(N\x85(.",
    "no mark": b"\x80\x04t.",
    "a key without a value": b"\x80\x04}(Nu.",
    "an append to a dictionary": b"\x80\x04}Na.",
    "items of a list": b"\x80\x04](NNu.",
    "2^38 values in 250 bytes": b"\x80\x04}\x8c\x01a](" + doubled(38) + b"es.",
    "a vocab_size of 2^36 values": b"\x80\x04}\x8c\x0avocab_size](" + doubled(36) + b"es.",
    "2^200 values and nothing else": b"\x80\x04](" + doubled(200) + b"e.",
    "a list in itself": b"\x80\x04}\x8c\x01a]\x94h\x00as.",
    "a dictionary in itself": b"\x80\x04}\x94\x8c\x01ah\x00s.",
    "two lists in each other": b"\x80\x04}\x8c\x01a]\x94]\x94h\x00aas.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_meta_pkl_is_refused_and_not_executed(nanogpt, monkeypatch, name):
    folder, _ = nanogpt
    monkeypatch.chdir(folder)
    (folder / "meta.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(
        ValueError, match=r"meta\.pkl holds more than plain values, or is damaged .*was not executed"
    ) as caught:
        open_tokens(folder, "train", 50257, "uint16")
    assert "\n" not in str(caught.value)
    assert not (folder / "hostile").exists()


def test_what_never_returned_is_refused_for_its_size():
    assert len(HOSTILE["2^38 values in 250 bytes"]) < 250
    many = [name for name in HOSTILE if " values" in name]
    for name in [*many, "a list in itself", "two lists in each other"]:
        with pytest.raises(InputError, match="more than 1,000,000 values"):
            plain_values(HOSTILE[name], Path("x"))


def test_the_hostile_calls_would_have_worked(tmp_path, monkeypatch):
    for name in ("a call", "a call, protocol 0", "an old call"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        pickle.loads(HOSTILE[name])
        assert (tmp_path / name / "hostile").is_dir()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    stoi = {chr(i): i for i in range(33, 400)}
    meta = {
        "vocab_size": 400,
        "stoi": stoi,
        "more": [None, True, -1, 2**70, 1.5, (), (1,), (1, 2, 3, 4), b"" if protocol > 2 else ""],
    }
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    assert read_nanogpt_meta(tmp_path) == meta


def test_a_memo_shares_what_it_holds():
    shared = ["a"]
    assert plain_values(pickle.dumps({"x": shared, "y": (shared, shared)}), Path("x")) == {
        "x": ["a"],
        "y": (["a"], ["a"]),
    }


def test_what_is_shared_a_little_is_read():
    """A table that comes up ten times."""
    itos = {i: chr(i + 300) for i in range(20_000)}
    meta = {"itos": itos, "again": [itos] * 9, "stoi": {s: i for i, s in itos.items()}}
    assert plain_values(pickle.dumps(meta), Path("x")) == meta


def test_nesting_alone_is_no_fault(nanogpt):
    folder, _ = nanogpt
    deep = b"\x80\x04}\x8c\x01a)" + b"\x85" * 100_000 + b"s."
    (folder / "meta.pkl").write_bytes(deep)
    assert open_tokens(folder, "train", 50257, "uint16").n_tokens == 3000


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(-(2**32), 2**32)), inner),
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(3, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=100, deadline=None)
def test_what_pickle_writes_is_read(value, protocol):
    assert plain_values(pickle.dumps(value, protocol), Path("x")) == value


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL), st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_end_in_a_value_or_one_line(value, protocol, data):
    content = bytearray(pickle.dumps(value, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        plain_values(bytes(content), Path("x"))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
