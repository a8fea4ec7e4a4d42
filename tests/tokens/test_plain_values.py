"""meta.pkl: plain values of every protocol, and nothing else."""

import os
import pickle

import pytest

from tokens.nanogpt import read_nanogpt_meta
from tokens.reader import open_tokens


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


class Innocent:
    pass


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
