"""Runs at equal tokens: interpolated, never extrapolated."""

import pytest
from run_logs import compared, loss_of, notes, row_of, write_log

from analysis import alignment

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_loss_at_common_tokens_is_interpolated(capsys):
    write_log("out-a", floor=3.0, steps=(0, 90), evals=30)
    write_log("out-b", floor=3.1, steps=(0, 100), evals=25)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert report["common_tokens"] == 90_000
    expected = loss_of(3.1, 75) + (loss_of(3.1, 100) - loss_of(3.1, 75)) * 15 / 25
    assert row_of(report, "out-b")["val_loss_at_common_tokens"] == pytest.approx(expected, rel=1e-12)
    assert row_of(report, "out-a")["val_loss_at_common_tokens"] == loss_of(3.0, 90)
    assert any(
        "90,000 tokens" in note and "differ in tokens (90,000 to 100,000)" in note for note in notes(out)
    )
    assert "val loss at 90K" in out.splitlines()[0]


def test_equal_tokens_need_no_common_count(capsys):
    write_log("out-a", floor=3.0)
    write_log("out-b", floor=3.1)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert (
        report["common_tokens"] is None
        and "differ in tokens" not in out
        and " at " not in out.splitlines()[0]
    )


def test_nothing_is_extrapolated(capsys):
    """One run stopped before the other was first evaluated."""
    write_log("out-a", floor=3.0, steps=(0, 50))
    write_log("out-b", floor=3.1, steps=(60, 200), started=1_700_000_500)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert report["common_tokens"] is None
    assert all(row["val_loss_at_common_tokens"] is None for row in report["runs"])
    assert any("no token count" in note for note in notes(out))


@pytest.mark.parametrize(
    "tokens, value", [(0, None), (10, 5.0), (15, 4.5), (20, 4.0), (35, 3.25), (40, 3.0), (41, None)]
)
def test_value_at(tokens, value):
    assert alignment.value_at([(10, 5.0), (20, 4.0), (40, 3.0)], tokens) == value
