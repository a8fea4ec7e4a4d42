"""meta.json: what it holds, and what is refused in it."""

import numpy as np
import pytest
from toy_tokens import TOKENIZER, write_split

from tokens.format import write_meta


def test_write_meta_refuses_ids_without_a_row(tmp_path):
    splits = {"train": write_split(tmp_path, "train", [np.array([1, 99])])}
    arguments = dict(tokenizer=TOKENIZER, splits=splits)
    with pytest.raises(ValueError, match=r"train_00000\.bin: id 99 has no row in a vocabulary of 99"):
        write_meta(tmp_path, vocab_size=99, eot_id=0, **arguments)
    with pytest.raises(ValueError, match="eot_id: id 100"):
        write_meta(tmp_path, vocab_size=100, eot_id=100, **arguments)
    assert not (tmp_path / "meta.json").exists()
    write_meta(tmp_path, vocab_size=100, eot_id=99, **arguments)
