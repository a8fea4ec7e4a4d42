"""Executes docs/tour.ipynb from top to bottom, as .ci/run does. The notebook itself is not changed."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    print(f"docs/tour.ipynb: {len(notebook.cells)} cells executed")
