"""The fixtures of the tests of tokenization/, for modules that say `pytest_plugins = ["preparing_fixtures"]`."""

import signal

import pytest
from preparing import TEXTS, InThisProcess, custom, write_files

from tokenization import cutting, worker
from tokenization.tokenizers import find_tokenizer


@pytest.fixture
def restored_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def in_this_process(monkeypatch, restored_signals):
    """Pools do their work in this process."""
    monkeypatch.setattr(worker, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(worker, "watch_parent", lambda: None)


@pytest.fixture
def toy(toy_folder, monkeypatch):
    monkeypatch.setattr(cutting, "PIECE_BYTES", 500)  # so that small batches are possible
    return find_tokenizer(toy_folder)


@pytest.fixture
def corpus(tmp_path):
    write_files(tmp_path / "in", "jsonl", TEXTS, parts=5)
    return tmp_path / "in"


@pytest.fixture
def prepare_custom(corpus, toy_folder, tmp_path, restored_signals):
    """prepare_custom("out", *flags) prepares the corpus and returns its folder."""

    def call(name, *flags):
        common = (
            f"--source={corpus}",
            f"--tokenizer={toy_folder}",
            f"--out_dir={tmp_path / name}",
            "--shard_tokens=1000",
        )
        assert custom(*common, "--val_fraction=0.1", "--workers=1", *flags) == 0
        return tmp_path / name

    return call
