"""The order of the data: every window once an epoch, at any world size, from any step."""

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
    for n in [*range(1, 130), 1000, 4097]:
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
