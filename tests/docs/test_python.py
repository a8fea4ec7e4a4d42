"""docs/PYTHON.md does what it says: its snippets run, one after another, and so does the notebook, in CI."""

import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def snippets() -> list[str]:
    text = (ROOT / "docs" / "PYTHON.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A working directory as the root of the checkout is, in which runs may be written."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippets_run_in_order(checkout, capsys):
    names: dict[str, object] = {}
    code = snippets()
    assert len(code) >= 7
    for n, snippet in enumerate(code, 1):
        exec(compile(snippet, f"snippet {n} of docs/PYTHON.md", "exec"), names)
    out = capsys.readouterr().out
    assert "4,753,536 parameters, 512 tokens a step" in out
    history = names["history"]
    assert [h["step"] for h in history] == list(range(1, 11)) and history[-1]["loss"] < history[0]["loss"]
    assert "def main(" in out and re.search(
        r"^20 out-python/checkpoints/step_00000020$", out, flags=re.MULTILINE
    )


def test_the_notebook_shows_what_the_page_does():
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for name in (
        "load_config",
        "build_run",
        "run.step()",
        "run.evaluate()",
        "Journal",
        "generate",
        "run.save()",
    ):
        assert name in code, name
    assert not any(cell.get("outputs") for cell in cells), "clear the outputs: they name a machine"
