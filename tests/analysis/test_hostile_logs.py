"""Logs that no train.py wrote: none ends in a traceback, and one bad log does not end a comparison of the
others."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_logs import compare_without_picture, compared, write_log

from analysis import logs
from analysis.plot import plot
from analysis.runs import read_runs
from base.errors import InputError

pytestmark = pytest.mark.usefixtures("in_tmp_path")
DEEP = "[" * 100_000 + "]" * 100_000


def put_binary(path):
    path.write_bytes(bytes(range(256)) * 400)


def put_folder(path):
    path.mkdir()


def put_dangling_link(path):
    path.symlink_to("nowhere")


def put_link_to_itself(path):
    path.symlink_to(path.name)


def put_pipe(path):
    os.mkfifo(path)


def put_device(path):
    path.symlink_to("/dev/zero")


def put_deep(path):
    path.write_text(f'{{"event": "run_start", "config": {DEEP}, "model": {{}}}}\n')


def put_long_line(path):
    path.write_text('{"event": "run_start", "pad": "' + "x" * (2 * logs.MAX_LINE_BYTES) + '"}\n')


def put_half_deep(path):
    """Nested as far as a parser goes, and too deep for whoever walks through it."""
    write_log("out-deep").rename(path)
    text = path.read_text()
    path.write_text(text.replace('"dataset": "d"', '"dataset": ' + "[" * 500 + "]" * 500, 1))


BAD_LOGS = {
    put_binary: "has no run_start",
    put_folder: "is not a file",
    put_dangling_link: "is missing",
    put_link_to_itself: "cannot be read",
    put_pipe: "is not a file",
    put_device: "is not a file",
    put_deep: "has no run_start",
    put_long_line: "has no run_start",
    put_half_deep: "has no run_start",
}


@pytest.mark.parametrize("put", BAD_LOGS)
@pytest.mark.parametrize("how", ["the log", "its folder", "a pattern", "--latest"])
def test_one_bad_log_is_left_out(put, how, capsys):
    write_log("out-a")
    Path("out-b").mkdir()
    bad = Path("out-b/run_x.jsonl")
    put(bad)
    words = {"the log": [str(bad)], "its folder": ["out-b"], "a pattern": ["out-b/run_*.jsonl"]}
    argv = ["--latest=3"] if how == "--latest" else ["out-a", *words[how]]
    _, err, report = compared(capsys, *argv)
    assert [row["out_dir"] for row in report["runs"]] == ["out-a"]
    assert (
        err.startswith(f"compare_architectures.py: left out: {bad} {BAD_LOGS[put]}") and err.count("\n") == 1
    )
    # beside good logs in one folder
    write_log("out-b", started=1_700_000_001)
    _, err, report = compared(capsys, "out-a", "out-b")
    assert {row["out_dir"] for row in report["runs"]} == {"out-a", "out-b"}
    assert err.count("\n") == 1 and BAD_LOGS[put] in err


@pytest.mark.parametrize("put", BAD_LOGS)
def test_nothing_but_a_bad_log(put, capsys):
    Path("out-b").mkdir()
    put(Path("out-b/run_x.jsonl"))
    for word in ("out-b", "out-b/run_x.jsonl", "--latest=1"):
        with pytest.raises(SystemExit) as stopped:
            compare_without_picture(word)
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and err.count("\n") == 1 and BAD_LOGS[put] in err


def test_a_log_without_permission_is_left_out(capsys, monkeypatch):
    """By a refusal of the system, since root may read anything."""
    write_log("out-a")
    locked = write_log("out-b")

    def refuse(file, *args, **kwargs):
        if Path(file) == locked:
            raise PermissionError(13, "Permission denied", str(file))
        return open(file, *args, **kwargs)

    monkeypatch.setattr(logs, "open", refuse, raising=False)
    _, err, report = compared(capsys, "out-a", "out-b")
    assert len(report["runs"]) == 1 and f"{locked} cannot be read (Permission denied)" in err


@pytest.mark.parametrize("word", ["x" * 5000, "out-[", "a\0b"])
def test_odd_words_are_not_there(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_without_picture(word)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and "is not there" in err


def test_texts_of_a_log_stay_on_their_line(capsys):
    """A name may move a terminal's cursor, break a table, or have no encoding."""
    path = write_log("out-a", end="error: \x1b[2J\nlost\ud800")
    path.write_text(path.read_text().replace("GPT-2 (pre", "GPT\\u0007\\n\\ud800 (pre"))
    out, _, report = compared(capsys, "out-a")
    assert "GPT\\x07\\n\\ud800" in out and "error: \\x1b[2J\\nlost\\ud800" in out
    assert report["runs"][0]["status"] == "crashed"


@pytest.mark.parametrize("model", [None, {}, {"n_layer": [2]}, {"position_encoding": {"a": 1}}])
def test_a_config_of_odd_values_is_compared(model, capsys):
    write_log(
        "out-a", train={"seed": 1, "learning_rate": "fast", "optimizer": ["adamw"], "lr_schedule": None}
    )
    path = write_log("out-b", train={"seed": [1], "out_dir": 7})
    path.write_text(
        path.read_text().replace('"config": {"model": {}', f'"config": {{"model": {json.dumps(model)}')
    )
    _, _, report = compared(capsys, "out-a", "out-b")
    assert len(report["runs"]) == 2 and report["config_diff"]["fields"]["learning_rate"] == ["fast", 6e-4]


@pytest.mark.parametrize("model", [[1], "gpt2", 3])
def test_a_config_that_is_none_begins_no_run(model, capsys):
    write_log("out-a")
    path = write_log("out-b")
    path.write_text(
        path.read_text().replace('"config": {"model": {}', f'"config": {{"model": {json.dumps(model)}')
    )
    _, err, report = compared(capsys, "out-a", "out-b")
    assert "out-b" in err and len(report["runs"]) == 1


SMALL = st.none() | st.integers() | st.text(max_size=3)
ODD = st.one_of(
    st.recursive(
        SMALL,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([10**400, -1, 0, 10**49, 2**63, 1e-300, 1e49, -1e49, 5e-324]),
    st.sampled_from(["\ud800", "\0", "../..", "x" * 300]),
)


def paths_into(value, path=()):
    """Of every value inside an event, and of the event itself."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_into(inner, (*path, key))


def mutated(value, path, new):
    if not path:
        return new
    copy = value.copy()
    if new is DROPPED and len(path) == 1:
        copy.pop(path[0])
    else:
        copy[path[0]] = mutated(value[path[0]], path[1:], new)
    return copy


DROPPED = object()


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_mutation_ends_in_a_traceback(data, capsys):
    """Some values of the events of one log are others; another log is as it should be."""
    write_log("out-good")
    model = {"position_encoding": "rope", "n_layer": 2}
    path = write_log("out-bad", steps=(0, 20), evals=5, model=model, train={"seed": 1, "learning_rate": 1e-3})
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.just(0) | st.integers(0, len(events) - 1))
        where = data.draw(
            st.sampled_from(list(paths_into(events[i])) if isinstance(events[i], dict) else [()])
        )
        new = data.draw(st.just(DROPPED) | ODD) if where else data.draw(ODD)
        events[i] = mutated(events[i], where, new)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    _, err, report = compared(capsys, "out-good", "out-bad")
    assert any(row["out_dir"] == "out-good" for row in report["runs"])
    assert len(report["runs"]) == 2 or err.startswith("compare_architectures.py: left out: out-bad/run_")


@pytest.mark.parametrize(
    "loss, tokens, dt_ms", [(1e49, 1e49, 1e49), (-1e49, 0, 1e-300), (5e-324, 5e-324, 5e-324), (0, 1, 0)]
)
def test_extremes_are_drawn(loss, tokens, dt_ms):
    path = write_log("out-a", flops=tokens)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events[5:]:
        event.update(
            {
                k: v
                for k, v in {"loss": loss, "val_loss": loss, "tokens": tokens, "dt_ms": dt_ms}.items()
                if k in event
            }
        )
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert plot(read_runs([[path]])).startswith(b"\x89PNG")


def test_a_log_that_goes_away_is_input(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_runs([[tmp_path / "run_x.jsonl"]])
