"""Sources on the hub, or in a folder of its layout."""

import json

import pytest
from source_formats import ROWS, TEXTS, jsonl, parquet, problems_of, rows_of, texts_of

from base.errors import MissingFile
from tokenization.hub_source import HubSource


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder of the layout of a hub dataset, in two files."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "data").mkdir()
    for i in range(2):
        (folder / f"data/train-0000{i}-of-00002.parquet").write_bytes(parquet(ROWS[i * 30 : i * 30 + 30]))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("download", [False, True])
def test_hub_dataset(hub, offline, download):
    def source():
        return HubSource(str(hub), source_field="meta.set", download=download, rows_at_once=7)

    source_ = source()
    next(source_.batches(None))  # as the pipeline looks at a sample first
    batches = [(list(batch.rows()), batch.n_rows, batch.next_position) for batch in source_.batches(None)]
    rows = [row for rows, _, _ in batches for row in rows]
    assert [(row.text, row.source) for row in rows] == [
        (row["text"], row["meta"]["set"]) for row in ROWS[:60]
    ]
    assert [row.where for row in rows] == [f"{hub} train:{i + 1}" for i in range(60)]
    done = 0
    for _, n_rows, position in batches:
        done += n_rows
        position = json.loads(json.dumps(position))
        assert [row.text for row in rows_of(source(), position)] == TEXTS[done:60]


def test_hub_dataset_of_jsonl(tmp_path, offline):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.jsonl").write_bytes(jsonl(ROWS))
    for download in (False, True):
        source = HubSource(str(tmp_path / "d"), download=download, rows_at_once=10)
        assert texts_of(source) == TEXTS
        position = list(source.batches(None))[2].next_position
        assert (
            texts_of(HubSource(str(tmp_path / "d"), download=download, rows_at_once=10), position)
            == TEXTS[30:]
        )


def test_hub_dataset_that_lacks_the_column(hub, offline):
    with pytest.raises(ValueError, match=r"has no column 'content', only text, meta"):
        HubSource(str(hub), text_field="content")
    assert (
        problems_of(HubSource(str(hub), text_field="meta.absent"))[0][1] == "field 'meta.absent' is missing"
    )


def test_hub_dataset_without_a_network(offline):
    with pytest.raises(MissingFile, match=r"cannot be read from the hub .*--source=FILES") as error:
        HubSource("no-such-user/no-such-dataset")
    assert "\n" not in str(error.value)
