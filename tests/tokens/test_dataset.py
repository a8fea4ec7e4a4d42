"""Dataset folders by name or path, and all that a run reads of them."""

import shutil

import pytest
import torch
from toy_tokens import EOT, TOKENIZER, VOCAB

from base.errors import InputError, MissingFile
from tokens.dataset import Dataset, dataset_folder
from tokens.reader import open_tokens

pytest_plugins = ["tokens_fixtures"]


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


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udcff"])
def test_a_name_that_cannot_be_one_is_not_there(tmp_path, name):
    with pytest.raises(MissingFile, match="is neither a folder nor one of data/"):
        dataset_folder(name, tmp_path)


SIZES = dict(
    vocab_size=VOCAB, block_size=16, batch_size=2, gradient_accumulation_steps=4, seed=7, eval_tokens=96
)


def test_a_run_reads_its_share_of_both_splits(toy_dataset):
    whole = Dataset(str(toy_dataset), toy_dataset.parent, **SIZES)
    shares = [Dataset(str(toy_dataset), toy_dataset.parent, rank=r, world_size=2, **SIZES) for r in range(2)]
    assert [list(d.loader.own_micro_steps) for d in (whole, *shares)] == [[0, 1, 2, 3], [0, 2], [1, 3]]
    batches = list(whole.evaluation_batches("val"))
    mine = [list(d.evaluation_batches("val")) for d in shares]
    for i, batch in enumerate(batches):
        assert all(map(torch.equal, batch, mine[i % 2][i // 2]))
    tokens = open_tokens(toy_dataset, "train", VOCAB)
    assert whole.record(max_iters=10) == {
        "dataset": str(toy_dataset),
        "sources": [
            {
                "dataset": str(toy_dataset),
                "weight": 1.0,
                "tokens": tokens.n_tokens,
                "epochs": 80 / ((tokens.n_tokens - 1) // 16),
            }
        ],
        "fingerprint": tokens.fingerprint,
        "bytes_per_token": 3.0,
        "train_bytes_per_token": 3.0,
        "tokenizer": TOKENIZER,
        "eot_id": EOT,
    }


def test_document_masking_needs_an_end_of_text_id(toy_dataset, nanogpt):
    masked = Dataset(str(toy_dataset), toy_dataset.parent, document_masking=True, **SIZES)
    assert len(masked.loader.micro_batch(0, 0)) == len(next(masked.evaluation_batches("val"))) == 3
    folder, _ = nanogpt
    sizes = {**SIZES, "vocab_size": 50257, "data_dtype": "uint16"}
    assert Dataset(str(folder), folder, **sizes).notes == []
    with pytest.raises(InputError, match=r"document_masking=True: .* has no meta\.json and so no eot_id"):
        Dataset(str(folder), folder, document_masking=True, **sizes)


def test_notes(toy_dataset):
    shutil.copytree(toy_dataset, toy_dataset.parent / "other")
    assert [n.partition(": ")[2] for n in Dataset("d", toy_dataset.parent, **SIZES).notes] == [
        "sample.py will look for its files in the run folder"
    ]
    (toy_dataset / "tokenizer_config.json").write_text("{}")
    assert Dataset("d", toy_dataset.parent, **SIZES).notes == []
    assert Dataset("d:3,other:1", toy_dataset.parent, **{**SIZES, "eval_tokens": 3200}).notes == [
        "the weights of dataset sum to 4; normalised: d 0.75, other 0.25",
        # 12 are three quarters of 16
        "evaluations of val take 16 windows, not 200: the split has no more for its weight",
    ]
