"""Tokenizers on disk, one loader. The package `tokenizers` is imported where it is used: training needs none."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def import_tokenizers(purpose: str) -> ModuleType:
    """The PyPI package. Raises ImportError where it is absent: "`purpose` needs …", and what to install."""
    try:
        import tokenizers
    except ImportError as e:
        raise ImportError(f"{purpose} needs the package tokenizers: pip install tokenizers") from e
    return tokenizers


def load_tokenizer(folder: str | Path) -> "Tokenizer":
    """The tokenizer of `folder/tokenizer.json`. Raises ImportError, FileNotFoundError or, if damaged, ValueError."""
    path = Path(folder) / "tokenizer.json"
    package = import_tokenizers("reading tokenizer.json")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it belongs beside the data or the checkpoints that were made with it")
    try:
        return package.Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises bare Exception
        raise ValueError(f"{path} is not a tokenizer ({e}): copy it again from the dataset folder") from None
