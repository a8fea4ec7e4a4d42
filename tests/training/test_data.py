"""The order of the data: every window once an epoch, at any world size, from any step."""

import threading

import numpy as np
import pytest
import torch

from training.data import BatchLoader, dataset_folder, dropout_seed, evaluation_batches, permute


class Ramp:
    """Tokens that are their own positions."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0 and start + length <= self.n_tokens
        return np.arange(start, start + length, dtype=np.int64)


def test_permute_is_a_bijection():
    for n in [*range(1, 301), 1000, 4097]:
        assert sorted(permute(np.arange(n), n, key=3)) == list(range(n))
    big = permute(np.arange(2**40, 2**40 + 5000), 2**41 + 17, key=9)
    assert len(set(big.tolist())) == 5000 and big.min() >= 0 and big.max() < 2**41 + 17
    assert not np.array_equal(permute(np.arange(1000), 1000, 1), permute(np.arange(1000), 1000, 2))


def test_permute_mixes():
    order = permute(np.arange(10_000), 10_000, key=0)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


def windows_of(loaders: list[BatchLoader], steps: range) -> list[list[int]]:
    """The first token of every row, in global order, a list for each step."""
    return [
        [
            w
            for m in range(loaders[0].micro_steps_per_step)
            for w in loaders[m % len(loaders)].micro_batch(s, m)[0][:, 0].tolist()
        ]
        for s in steps
    ]


def test_each_window_once_an_epoch_in_one_order_at_any_world_size():
    T, B, accumulation = 8, 3, 12
    tokens = Ramp(8 * 360 + 1)  # 360 windows, 36 a step: an epoch is 10 steps
    orders = []
    for world in (1, 2, 3, 4):
        loaders = [BatchLoader(tokens, T, B, accumulation, 5, rank, world) for rank in range(world)]
        assert sorted(m for loader in loaders for m in loader.own_micro_steps) == list(range(accumulation))
        orders.append(windows_of(loaders, range(20)))
    assert all(order == orders[0] for order in orders)
    first, second = ([w for step in orders[0][a:b] for w in step] for a, b in ((0, 10), (10, 20)))
    assert sorted(first) == sorted(second) == list(range(0, 8 * 360, 8)) and first != second
    other_seed = windows_of([BatchLoader(tokens, T, B, accumulation, 6)], range(10))
    assert [w for step in other_seed for w in step] != first


def test_an_epoch_may_end_inside_a_batch():
    loader = BatchLoader(Ramp(4 * 10 + 3), 4, 3, 1, 0)  # 10 windows, 3 a step
    seen = [w for step in windows_of([loader], range(10)) for w in step]
    assert [sorted(seen[i : i + 10]) for i in (0, 10, 20)] == [list(range(0, 40, 4))] * 3


def test_prefetch_starts_anywhere_and_targets_follow_inputs():
    loader = BatchLoader(Ramp(1000), 8, 2, 4, 0, rank=1, world_size=2)
    stream = loader.prefetched(3, torch.device("cpu"))
    for step, micro_step in ((3, 1), (3, 3), (4, 1), (4, 3), (5, 1)):
        (x, y), (xx, yy) = next(stream), loader.micro_batch(step, micro_step)
        assert torch.equal(x, xx) and torch.equal(y, yy) and torch.equal(x + 1, y) and x.shape == (2, 8)
    stream.close()


def test_evaluation_windows_depend_on_the_sizes_alone():
    def starts(**how: int) -> list[int]:
        out = []
        for x, y in evaluation_batches(Ramp(1000), 8, 4, 6, **how):
            assert torch.equal(x + 1, y)
            out += x[:, 0].tolist()
        return out

    whole = starts()
    assert len(set(whole)) == 24
    assert sorted(starts(rank=0, world_size=4) + starts(rank=1, world_size=4) + starts(rank=2, world_size=4)
                  + starts(rank=3, world_size=4)) == sorted(whole)  # fmt: skip


def test_evaluation_of_a_short_split_takes_each_window_once():
    batches = list(evaluation_batches(Ramp(8 * 10 + 1), 8, 4, 100))
    assert [x.shape for x, _ in batches] == [(4, 8)] * 3
    valid = [x[row, 0].item() for x, y in batches for row in range(4) if (y[row] != -100).all()]
    assert sorted(valid) == list(range(0, 80, 8))
    assert (batches[-1][1][2:] == -100).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="block_size=8 needs 9 tokens, the split has 8"):
        BatchLoader(Ramp(8), 8, 1, 1, 0)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=3 is not divisible by the 2 processes"):
        BatchLoader(Ramp(100), 8, 1, 3, 0, world_size=2)


def test_dropout_seeds_differ():
    seeds = {dropout_seed(s, step, m) for s in range(3) for step in range(20) for m in range(4)}
    assert len(seeds) == 240 and all(0 <= s < 2**63 for s in seeds)


def test_a_missing_dataset_says_what_to_do(tmp_path):
    (tmp_path / "slimpajama").mkdir()
    (tmp_path / "slimpajama" / "prepare.py").write_text("")
    with pytest.raises(FileNotFoundError, match=r"run python data/slimpajama/prepare\.py"):
        dataset_folder("slimpajama", tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor one of data/: slimpajama"):
        dataset_folder("nowhere", tmp_path)
    (tmp_path / "slimpajama" / "meta.json").write_text("{}")
    assert dataset_folder("slimpajama", tmp_path) == tmp_path / "slimpajama"
    assert dataset_folder(str(tmp_path / "slimpajama"), tmp_path) == tmp_path / "slimpajama"


def test_the_order_is_the_same_in_every_version():
    """A checkpoint of yesterday goes on in the order that it began; a change here breaks each run that is under way."""
    assert permute(np.arange(10), 10, key=0).tolist() == [3, 6, 0, 4, 2, 9, 7, 1, 8, 5]
    assert permute(np.array([0, 1, 2]), 10**12, key=1337 * 2**32 + 5).tolist() == [358443050640, 949565012830, 892796174546]
    assert dropout_seed(1337, 10, 3) == 8563492622765714348


def test_a_step_is_the_same_however_it_is_cut_into_micro_batches():
    whole = [windows_of([BatchLoader(Ramp(999), 4, B, 12 // B, 3)], range(9)) for B in (1, 2, 3, 12)]
    assert whole[0] == whole[1] == whole[2] == whole[3]
    assert windows_of([BatchLoader(Ramp(999), 4, 12, 1, 3)], range(5, 9)) == whole[0][5:]


def test_one_window_is_enough():
    x, y = BatchLoader(Ramp(9), 8, 3, 1, 0).micro_batch(7, 0)
    assert x.tolist() == [list(range(8))] * 3 and y.tolist() == [list(range(1, 9))] * 3
    ((x, y),) = evaluation_batches(Ramp(9), 8, 3, 5)
    assert x.shape == (3, 8) and (y[1:] == -100).all() and y[0].tolist() == list(range(1, 9))


@pytest.mark.parametrize("start", [0, 1, 17])
def test_prefetch_equals_micro_batch_in_every_rank(start):
    for rank in range(2):
        loader = BatchLoader(Ramp(500), 8, 2, 4, 9, rank, 2)
        stream = loader.prefetched(start, torch.device("cpu"))
        for step in range(start, start + 3):
            for m in loader.own_micro_steps:
                assert all(torch.equal(a, b) for a, b in zip(next(stream), loader.micro_batch(step, m), strict=True))
        stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("data")]


def test_what_the_reader_finds_reaches_the_loop():
    class Broken(Ramp):
        def read(self, start: int, length: int) -> np.ndarray:
            raise ValueError("id 97 at position 3")

    with pytest.raises(ValueError, match="id 97 at position 3"):
        next(BatchLoader(Broken(100), 8, 1, 1, 0).prefetched(0, torch.device("cpu")))


def test_an_evaluation_set_is_a_beginning_of_a_longer_one():
    """Of two runs that evaluate more and less, the smaller set is part of the larger."""
    short, long = (
        [w for x, _ in evaluation_batches(Ramp(1000), 8, 4, n) for w in x[:, 0].tolist()] for n in (3, 9)
    )  # fmt: skip
    assert len(short) == 12 and long[:12] == short
    with pytest.raises(ValueError, match="block_size=8 needs 9 tokens"):
        next(evaluation_batches(Ramp(5), 8, 1, 1))
