"""The batches: each window once an epoch, at any world size, from any step."""

import threading

import numpy as np
import pytest
import torch
from toy_tokens import Ramp, windows_of

from tokens.loader import BatchLoader, document_starts, evaluation_batches


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
        for x, y in evaluation_batches(Ramp(1000), 8, 4, 24, **how):
            n_batches.append(how)
            if (y != -100).any():  # else a rank's part in a round for which there are not enough
                assert torch.equal(x + 1, y)
                out += x[:, 0].tolist()
        return out

    n_batches: list = []
    whole = starts()
    assert len(set(whole)) == 24
    assert sorted(starts(rank=0, world_size=4) + starts(rank=1, world_size=4) + starts(rank=2, world_size=4)
                  + starts(rank=3, world_size=4)) == sorted(whole)  # fmt: skip
    assert [n_batches.count({"rank": r, "world_size": 4}) for r in range(4)] == [
        2,
        2,
        2,
        2,
    ]  # every rank in every collective


def test_evaluation_of_a_short_split_takes_each_window_once():
    batches = list(evaluation_batches(Ramp(8 * 10 + 1), 8, 4, 100))
    assert [x.shape for x, _ in batches] == [(4, 8)] * 3
    valid = [x[row, 0].item() for x, y in batches for row in range(4) if (y[row] != -100).all()]
    assert sorted(valid) == list(range(0, 80, 8))
    assert (batches[-1][1][2:] == -100).all()


def test_a_rank_without_a_batch_reads_tokens_and_counts_none():
    """Of one sequence, too, whose inputs and targets are two views of the same row."""
    ((x, y),) = evaluation_batches(Ramp(1000), 8, 1, 1, rank=1, world_size=2)
    assert (y == -100).all() and (x >= 0).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="block_size=8 needs 9 tokens, the split has 8"):
        BatchLoader(Ramp(8), 8, 1, 1, 0)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=3 is not divisible by the 2 processes"):
        BatchLoader(Ramp(100), 8, 1, 3, 0, world_size=2)


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
                assert all(
                    torch.equal(a, b) for a, b in zip(next(stream), loader.micro_batch(step, m), strict=True)
                )
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
        [w for x, _ in evaluation_batches(Ramp(1000), 8, 4, n) for w in x[:, 0].tolist()] for n in (12, 36)
    )  # fmt: skip
    assert len(short) == 12 and long[:12] == short
    with pytest.raises(ValueError, match="block_size=8 needs 9 tokens"):
        next(evaluation_batches(Ramp(5), 8, 1, 1))


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_evaluated_is_not_what_was_trained_on_first(seed):
    """Of a thousand windows, a hundred of one order hold about ten of a hundred of another."""
    trained = {w for step in windows_of([BatchLoader(Ramp(8001), 8, 10, 1, seed)], range(10)) for w in step}
    evaluated = {w for x, _ in evaluation_batches(Ramp(8001), 8, 10, 100) for w in x[:, 0].tolist()}
    assert len(trained) == len(evaluated) == 100 and len(trained & evaluated) < 30


def test_document_starts_travel_with_the_batch():
    class Sentences(Ramp):
        def read(self, start: int, length: int) -> np.ndarray:
            return super().read(start, length) % 7  # 0 ends a document

    loader = BatchLoader(Sentences(1000), 16, 4, 1, 0, eot_id=0)
    x, y, starts = loader.micro_batch(0, 0)
    plain = BatchLoader(Sentences(1000), 16, 4, 1, 0).micro_batch(0, 0)
    assert torch.equal(x, plain[0]) and torch.equal(y, plain[1]) and (y != -100).all()
    assert starts.shape == x.shape and starts.dtype == torch.int32
    for row, begin in zip(x.tolist(), starts.tolist(), strict=True):
        expected = 0
        for column in range(16):
            assert begin[column] == expected
            expected = column + 1 if row[column] == 0 else expected
    assert all(
        torch.equal(a, b)
        for a, b in zip(next(loader.prefetched(0, torch.device("cpu"))), (x, y, starts), strict=True)
    )
    (*_, evaluated), *_ = evaluation_batches(Sentences(1000), 16, 4, 2, eot_id=0)
    assert evaluated.shape == (4, 16) and evaluated.max() > 0


def test_starts_written_out():
    ids = np.array([[5, 9, 5, 9, 9, 5], [9, 5, 5, 5, 5, 9], [5, 5, 5, 5, 5, 5]])
    assert document_starts(ids, 9).tolist() == [[0, 0, 2, 2, 4, 5], [0, 1, 1, 1, 1, 1], [0] * 6]


def test_an_error_in_the_reader_is_raised_at_its_batch_and_ends_the_thread():
    class BrokenLater(Ramp):
        reads = 0

        def read(self, start: int, length: int) -> np.ndarray:
            self.reads += 1
            if self.reads > 3:
                raise ValueError("id 97 at position 3")
            return super().read(start, length)

    stream = BatchLoader(BrokenLater(1000), 8, 1, 1, 0).prefetched(0, torch.device("cpu"))
    for _ in range(3):
        next(stream)
    with pytest.raises(ValueError, match="id 97 at position 3"):
        next(stream)
    assert not [t for t in threading.enumerate() if t.name.startswith("data")]
