"""Who leads at equal tokens, FLOPs and time, and what forbids to say so."""

import math
import re

import pytest
from run_logs import BYTES_PER_TOKEN, compared, loss_of, row_of, standing, three_seeds, write_log, write_three

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_who_leads_depends_on_what_is_equal(capsys):
    """A learns a third faster per token, but a token of it costs twice the FLOPs and half the time."""
    write_log("out-a", floor=3.0, flops=1.2e9, dt_ms=100.0)
    write_log("out-b", floor=3.0, flops=6e8, loss=lambda floor, step: loss_of(floor, step * 0.75))
    out, _, report = compared(capsys, "out-a", "out-b")

    def bits(step):
        return loss_of(3.0, step) / math.log(2) / BYTES_PER_TOKEN

    tokens, flops, seconds = (standing(report, axis) for axis in ("tokens", "FLOPs", "time"))
    assert [p["configuration"] for p in tokens["places"]] == ["out-a", "out-b"] and tokens["at"] == 100_000
    assert tokens["places"][1]["gap"] == pytest.approx(bits(75) - bits(100))
    assert flops["at"] == pytest.approx(
        6e13
    )  # b ends there; a stood there at 50,000 tokens, between two evaluations
    first, second = flops["places"]
    assert (first["configuration"], second["configuration"]) == ("out-b", "out-a")
    assert first["mean"] == pytest.approx(bits(75)) and second["mean"] == pytest.approx(
        (bits(40) + bits(60)) / 2
    )
    assert seconds["at"] == pytest.approx(10.0) and seconds["places"][0]["configuration"] == "out-a"
    assert seconds["places"][1]["values"] == pytest.approx([(bits(30) + bits(45)) / 2])
    assert report["common_flops"] == pytest.approx(6e13) and "bits/byte at 6e+13 FLOPs" in out.splitlines()[0]
    assert row_of(report, "out-a")["bits_per_byte_at_common_flops"] == pytest.approx(second["mean"])
    assert "At equal FLOPs: out-b leads out-a" in out


def test_since_when_it_leads(capsys):
    """b overtakes a on the line between 40 and 60 thousand tokens."""
    write_log("out-a", loss=lambda floor, step: 5.0)
    write_log("out-b", loss=lambda floor, step: 6.0 if step <= 40 else 4.5)
    _, _, report = compared(capsys, "out-a", "out-b")
    entry = standing(report, "tokens")
    assert entry["places"][0]["configuration"] == "out-b" and entry["range"] == [0, 100_000]
    assert entry["leads_since"] == pytest.approx(40_000 + 20_000 * 1.0 / 1.5)


def test_nobody_leads_where_two_end_level(capsys):
    write_log("out-a", loss=lambda floor, step: 5.0)
    write_log("out-b", loss=lambda floor, step: 6.0 if step <= 40 else 5.0)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert standing(report, "tokens")["leads_since"] is None and "leads" not in out and "level" in out


def test_seeds_of_one_configuration(capsys):
    three_seeds("out-sweep/a", [3.00, 3.01, 3.02], train={"learning_rate": 1e-3})
    three_seeds("out-sweep/b", [3.20, 3.21, 3.22], train={"learning_rate": 3e-3})
    three_seeds("out-sweep/c", [2.90, 3.10, 3.05], train={"learning_rate": 2e-3})
    write_log("out-sweep/b-again", floor=9.0, steps=(0, 80), train={"seed": 0, "learning_rate": 3e-3})
    out, _, report = compared(capsys, "out-sweep")  # the whole folder
    assert len(report["runs"]) == 10
    _, _, report = compared(capsys, *(f"out-sweep/{name}-seed*" for name in "abc"))
    places = {p["configuration"]: p for p in standing(report, "tokens")["places"]}
    assert list(places) == ["out-sweep/a", "out-sweep/c", "out-sweep/b"] and all(
        p["seeds"] == 3 for p in places.values()
    )
    finals = [loss_of(floor, 100) / math.log(2) / 4 for floor in (3.2, 3.21, 3.22)]
    assert places["out-sweep/b"]["mean"] == pytest.approx(sum(finals) / 3)
    assert places["out-sweep/b"]["spread"] == pytest.approx(
        finals[1] - finals[0]
    )  # of three equidistant values
    assert (
        places["out-sweep/b"]["larger_than_noise"] is True
        and places["out-sweep/c"]["larger_than_noise"] is False
    )
    assert places["out-sweep/b"]["differs_in"] == ["learning_rate"]
    assert report["config_diff"]["fields"] == {"learning_rate": [2e-3, 1e-3, 3e-3]}  # the best run first
    assert (
        "differ in learning_rate only" in out
        and "out-sweep/b-again: seed and configuration of another run" in out
    )
    assert any("leads out-sweep/c" in line and "within the noise" in line for line in report["summary"])


def test_a_crash_does_not_hide_how_the_others_end(capsys):
    write_three()
    _, _, report = compared(capsys, "--latest=3")
    assert standing(report, "tokens")["at"] == 40_000 and len(standing(report, "tokens")["places"]) == 3
    done = standing(report, "tokens", of="done")
    assert done["at"] == 100_000 and [p["configuration"] for p in done["places"]] == ["out/qwen3", "out-gpt2"]


@pytest.mark.parametrize("why", ["tokenizer", "range", "times", "hardware"])
def test_what_forbids_a_ranking_is_said(why, capsys):
    write_log("out-a", bits=why != "tokenizer")
    path = write_log("out-b", fingerprint="f1" if why == "tokenizer" else "f0", bits=why != "tokenizer",
                     steps=(120, 200) if why == "range" else (0, 100), dt_ms=None if why == "times" else 9.0,
                     started=1_700_000_001)  # fmt: skip
    if why == "hardware":
        path.write_text(path.read_text().replace("a CPU", "NVIDIA H200"))
    out, _, report = compared(capsys, "out-a", "out-b")
    expected = {"tokenizer": "held-out data: loss per token", "range": "no common range", "times": "step times of a run",
                "hardware": "differ in hardware"}[why]  # fmt: skip
    axes = (
        ["time"] if why in ("times", "hardware") else ["tokens", "FLOPs", "time"]
    )  # bytes are tokens once more
    assert [e["axis"] for e in report["standings"] if not e["places"]] == axes
    if why == "range":
        expected += "|step times of a run"  # a log that begins at step 120 does not say how long those took
    assert all(re.search(expected, standing(report, axis)["why"]) for axis in axes)
    assert f"not compared: {standing(report, 'time')['why']}" in out
