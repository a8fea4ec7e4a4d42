"""The picture: its size, its lines, and odd runs."""

import math
import struct
from pathlib import Path

import pytest
from run_logs import compared, loss_of, write_log, write_three

from analysis.curves import smoothed

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_smoothed():
    assert smoothed([]) == []
    assert smoothed([4.0]) == [4.0]
    line = [10.0 - i for i in range(30)]
    assert smoothed(line)[:-1] == pytest.approx(line[:-1])  # a straight line stays one
    assert smoothed([0.0, 3.0, 0.0]) == pytest.approx([0.0, 1.0, 1.5])


def size_of(path):
    """(width, height) of a PNG, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_picture(capsys, monkeypatch):
    """Its size, and what is drawn: asked of matplotlib, as an eye would have to otherwise."""
    write_three()
    from matplotlib.figure import Figure

    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: kept.append(self) or savefig(self, *a, **k))
    compared(capsys, "--latest=3", picture=True)
    width, height = size_of(Path("cmp/comparison.png"))
    assert 2450 < width < 2650 and 600 < height < 1000  # 12.75 inches at 200 dpi
    (figure,) = kept
    tokens, flops, seconds = figure.axes
    assert tokens.get_ylabel() == "Validation bits per byte"
    assert (tokens.get_xlabel(), flops.get_xlabel()) == ("Training tokens", "Training compute (FLOPs)")
    assert seconds.get_xlabel() == "Training time (h:mm:ss)"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        labels[:3] == ["Qwen3, out/qwen3", "GPT-2, out-gpt2", "LLaMA-3, out-llama3"]
        and labels[-1] == "crashed"
    )
    for ax, per_token in ((tokens, 1), (flops, 7e8), (seconds, 0.2 / 1000)):
        (cross,) = [line for line in ax.lines if line.get_marker() == "x"]
        assert list(cross.get_xdata()) == pytest.approx([40_000 * per_token])
        assert cross.get_ydata()[0] == pytest.approx(loss_of(3.1, 40) / math.log(2) / 4)
        assert len(ax.lines) == 2 * 3 + 1
    main = [line for line in tokens.lines if line.get_linewidth() == 1.6]
    assert len({line.get_color() for line in main}) == 3
    box = figure.legends[0].get_window_extent()
    assert all(not box.overlaps(ax.get_tightbbox()) for ax in figure.axes)


@pytest.mark.parametrize("kind", ["one", "no evaluation", "only step 0", "nan", "long", "a dollar"])
def test_picture_of_odd_runs(kind, capsys):
    options = {
        "no evaluation": dict(evals=0),
        "only step 0": dict(steps=(0, 3)),
        "nan": dict(loss=lambda floor, step: math.nan),
        "long": dict(steps=(0, 2000)),
    }
    write_log("out-$x$^" if kind == "a dollar" else "out-a", **options.get(kind, {}))
    compared(capsys, "--latest=1", picture=True)
    assert size_of(Path("cmp/comparison.png"))[0] > 1000
