"""Dataset folders by name or path, and all that a run reads of them."""

import pytest

from base.errors import MissingFile
from tokens.dataset import dataset_folder


def test_a_missing_dataset_says_what_to_do(tmp_path):
    (tmp_path / "slimpajama").mkdir()
    (tmp_path / "slimpajama" / "prepare.py").write_text("")
    with pytest.raises(MissingFile, match=r"run python data/slimpajama/prepare\.py"):
        dataset_folder("slimpajama", tmp_path)
    with pytest.raises(MissingFile, match="neither a folder nor one of data/: slimpajama"):
        dataset_folder("nowhere", tmp_path)
    (tmp_path / "slimpajama" / "meta.json").write_text("{}")
    assert dataset_folder("slimpajama", tmp_path) == tmp_path / "slimpajama"
    assert dataset_folder(str(tmp_path / "slimpajama"), tmp_path) == tmp_path / "slimpajama"
