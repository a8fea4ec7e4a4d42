"""A dataset in our format and one in nanoGPT's, for modules that say `pytest_plugins = ["tokens_fixtures"]`."""

import pickle

import numpy as np
import pytest
from toy_tokens import write_dataset


@pytest.fixture
def toy_dataset(tmp_path):
    write_dataset(tmp_path / "d")
    return tmp_path / "d"


@pytest.fixture
def nanogpt(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50257, 3000)
    for split in ("train", "val"):
        ids.astype("<u2").tofile(tmp_path / f"{split}.bin")
    itos = dict(enumerate("abc"))
    meta = {"vocab_size": 50257, "itos": itos, "stoi": {s: i for i, s in itos.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return tmp_path, ids
