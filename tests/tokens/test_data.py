"""The order of the data: every window once an epoch, at any world size, from any step."""

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from base.errors import MissingFile
from tokens.dataset import dataset_folder
from tokens.loader import BatchLoader, document_starts, evaluation_batches
from tokens.mixture import Mixture, parse_mixture
from tokens.order import dropout_seed, permute


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


def test_dropout_seeds_differ():
    seeds = {dropout_seed(s, step, m) for s in range(3) for step in range(20) for m in range(4)}
    assert len(seeds) == 240 and all(0 <= s < 2**63 for s in seeds)


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


def test_the_order_is_the_same_in_every_version():
    """A checkpoint of yesterday goes on in the order that it began; a change here breaks each run that is
    under way."""
    assert permute(np.arange(10), 10, key=0).tolist() == [3, 6, 0, 4, 2, 9, 7, 1, 8, 5]
    assert permute(np.array([0, 1, 2]), 10**12, key=1337 * 2**32 + 5).tolist() == [
        358443050640,
        949565012830,
        892796174546,
    ]
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
        [w for x, _ in evaluation_batches(Ramp(1000), 8, 4, n) for w in x[:, 0].tolist()] for n in (3, 9)
    )  # fmt: skip
    assert len(short) == 12 and long[:12] == short
    with pytest.raises(ValueError, match="block_size=8 needs 9 tokens"):
        next(evaluation_batches(Ramp(5), 8, 1, 1))


class Source(Ramp):
    """A ramp that begins at `base`, with what a mixture asks of a stream."""

    eot_id = 0

    def __init__(
        self, n_tokens: int, base: int, sha256: str = "a", bytes_per_token: float | None = 3.0
    ) -> None:
        super().__init__(n_tokens)
        self.base, self.fingerprint, self.bytes_per_token = base, f"f{base}", bytes_per_token
        self.tokenizer = {"name": f"tokenizer {sha256}", "length": 9, "sha256": sha256}

    def read(self, start: int, length: int) -> np.ndarray:
        return self.base + super().read(start, length)


BASE = 10**6


def mixture(
    weights: str = "a:0.7,b:0.2,c:0.1", windows: tuple[int, ...] = (5000, 300, 2000), T: int = 4
) -> Mixture:
    parsed, _ = parse_mixture(weights, Path("no such root"))
    streams = [Source(n * T + 1, i * BASE) for i, n in enumerate(windows[: len(parsed)])]
    return Mixture(streams, list(parsed.values()), list(parsed))


def test_a_mixture_is_parsed_exactly(tmp_path):
    assert parse_mixture("a", tmp_path) == ({"a": 1}, None)
    assert parse_mixture("a:0.7, b:0.3", tmp_path) == ({"a": Fraction(7, 10), "b": Fraction(3, 10)}, None)
    weights, note = parse_mixture("a:1,b:2", tmp_path)
    assert weights == {"a": Fraction(1, 3), "b": Fraction(2, 3)}
    assert note == "the weights of dataset sum to 3; normalised: a 0.333333, b 0.666667"
    assert parse_mixture("/x:y/a:5e-1,b:.5", tmp_path)[0] == {"/x:y/a": Fraction(1, 2), "b": Fraction(1, 2)}
    (tmp_path / "odd:0.5,name").mkdir()
    assert parse_mixture("odd:0.5,name", tmp_path) == (
        {"odd:0.5,name": 1},
        None,
    )  # what is a folder is that folder
    assert parse_mixture(str(tmp_path / "odd:0.5,name"), Path("elsewhere"))[0] == {
        str(tmp_path / "odd:0.5,name"): 1
    }


@pytest.mark.parametrize("dataset, said", [
    ("a,b", "'a' is not name:weight with a weight above 0"),
    ("a:0.5,b:0", "'b:0' is not name:weight"),
    ("a:0.5,b:-1", "'b:-1' is not name:weight"),
    ("a:0.5,b:nan", "'b:nan' is not name:weight"),
    ("a:0.5,b:1e999999999", "is not name:weight"),
    ("a:0.5,b:1/0", "'b:1/0' is not name:weight"),
    ("a:0.5,:0.5", "':0.5' is not name:weight"),
    ("a:0.5,", "'' is not name:weight"),
    ("a:0.5,a:0.5", "names 'a' twice"),
    ("a:0.3333333,b:0.6666668", "no common denominator up to 1000000: round them"),
])  # fmt: skip
def test_a_wrong_mixture_is_named(dataset, said):
    with pytest.raises(ValueError) as error:
        parse_mixture(dataset, Path("no such root"))
    assert said in str(error.value) and str(error.value).startswith(f"dataset={dataset!r}")


def test_each_block_of_a_mixture_has_the_exact_proportions():
    for weights in ("a:0.7,b:0.2,c:0.1", "a:1,b:1,c:1", "a:0.999,b:0.001", "a:0.98765,b:0.01235"):
        mixed = mixture(weights)
        assert mixed.block >= 4096 and [Fraction(int(s), mixed.block) for s in mixed.shares] == mixed.weights
        orders = []
        for block in (0, 1, 10**6):
            samples = np.arange(mixed.block * block, mixed.block * (block + 1))
            source, number = mixed.deal(samples, seed=5)
            assert np.bincount(source).tolist() == mixed.shares.tolist()
            for i, share in enumerate(mixed.shares):  # the source's own samples, each once
                assert sorted(number[source == i]) == list(range(block * share, (block + 1) * share))
            orders.append(source.tolist())
        assert orders[0] != orders[1] != orders[2]
        assert not np.array_equal(mixed.deal(samples, seed=6)[0], source)


def test_a_mixture_is_one_order_at_any_world_size_and_each_source_keeps_its_epochs():
    T, B, accumulation = 4, 5, 4
    mixed = mixture(windows=(5000, 300, 2000))
    assert mixed.block == 4100
    loaders = {
        w: [BatchLoader(mixed, T, B, accumulation, 3, rank, w) for rank in range(w)] for w in (1, 2, 4)
    }
    some = {w: windows_of(loaders[w], range(100, 120)) for w in loaders}
    assert some[1] == some[2] == some[4]
    seen = np.array([w for step in windows_of(loaders[1], range(3 * 4100 // 20)) for w in step])
    source, window = np.divmod(seen, BASE)
    window //= T
    assert np.bincount(source).tolist() == [0.7 * 12300, 0.2 * 12300, 0.1 * 12300]
    assert len(set(window[source == 0].tolist())) == 5000 and set(np.bincount(window[source == 0])) == {1, 2}
    full, part = divmod(int((source == 1).sum()), 300)  # in 8.2 epochs each window of b comes 8 or 9 times
    counts = np.bincount(window[source == 1], minlength=300)
    assert full == 8 and set(counts) <= {full, full + 1} and (counts == full + 1).sum() == part
    assert set(np.bincount(window[source == 2], minlength=2000)) == {0, 1}
    assert loaders[1][0].epochs(205) == pytest.approx(
        [4100 * 0.7 / 5000, 4100 * 0.2 / 300, 4100 * 0.1 / 2000]
    )


def test_two_sources_of_one_size_are_permuted_apart():
    mixed = mixture("a:0.5,b:0.5", windows=(4096, 4096))
    seen = [w for step in windows_of([BatchLoader(mixed, 4, 64, 1, 3)], range(32)) for w in step]
    a, b = ([w % BASE for w in seen if w // BASE == i] for i in (0, 1))
    assert a[:200] != b[:200]


def test_the_order_of_a_mixture_is_the_same_in_every_version():
    source, number = mixture().deal(np.arange(10**9, 10**9 + 8), seed=1337)
    assert (source.tolist(), number.tolist()) == (
        [2, 0, 0, 1, 1, 0, 0, 1],
        [99999843, 699998956, 699999592, 199999765, 199999853, 700000947, 699999039, 199999688],
    )
    x, _ = BatchLoader(mixture(), 4, 8, 4, 1337).micro_batch(12345, 2)
    assert x[:, 0].tolist() == [9492, 17464, 576, 8364, 6444, 9800, 19372, 5008]


def test_a_mixture_of_one_is_the_dataset_itself():
    alone, mixed = Source(4001, 0), mixture("a:3", windows=(1000,))
    orders = [windows_of([BatchLoader(t, 4, 8, 4, 3)], range(40)) for t in (alone, mixed)]
    assert orders[0] == orders[1] and mixed.fingerprint == alone.fingerprint


def test_the_fingerprint_of_a_mixture_has_sources_weights_and_their_order():
    assert (
        len({mixture(w).fingerprint for w in ("a:0.7,b:0.3", "a:0.3,b:0.7", "a:0.7,b:0.2,c:0.1", "a:1")}) == 4
    )
    assert (
        mixture("a:0.7,b:0.3").fingerprint == mixture("x:7,y:3").fingerprint
    )  # names and places are no part of it
    a, b = Source(99, 0), Source(99, 1)
    one, other = (Mixture(order, [Fraction(1, 2)] * 2, ["a", "b"]).fingerprint for order in ([a, b], [b, a]))
    assert one != other


def test_a_mixture_has_one_tokenizer():
    half = [Fraction(1, 2)] * 2
    with pytest.raises(ValueError, match=r"a and b have different tokenizers, 'tokenizer x' .*'tokenizer y'"):
        Mixture([Source(99, 0, "x"), Source(99, 0, "y")], half, ["a", "b"])
    nanogpt = Source(99, 0)
    nanogpt.tokenizer = None
    with pytest.raises(ValueError, match=r"b has no meta\.json, so its tokenizer is unknown"):
        Mixture([Source(99, 0), nanogpt], half, ["a", "b"])
    with pytest.raises(ValueError, match="block_size=98 needs 99 tokens, b has 98"):
        BatchLoader(Mixture([Source(99, 0), Source(98, 0)], half, ["a", "b"]), 98, 1, 1, 0)


def test_evaluation_of_a_mixture_keeps_its_proportions():
    def counts(mixed: Mixture, B: int, n: int) -> list[int]:
        rows = [
            int(first)
            for x, y in evaluation_batches(mixed, 4, B, n)
            for first, target in zip(x[:, 0], y[:, 0], strict=True)
            if target != -100
        ]
        assert len(set(rows)) == len(rows)  # no window twice
        return np.bincount([r // BASE for r in rows], minlength=3).tolist()

    assert counts(mixture(), 5, 20) == [70, 20, 10]
    assert counts(mixture(), 1, 7) == [5, 1, 1]
    assert counts(mixture(windows=(5000, 30, 2000)), 50, 20) == [
        105,
        30,
        15,
    ]  # b has 30 windows, so all parts shrink
    mixed = mixture("a:0.75,b:0.25")
    assert [int(w) for x, _ in evaluation_batches(mixed, 4, 4, 8, 1, 2) for w in x[:, 0]] == [
        int(w) for i, (x, _) in enumerate(evaluation_batches(mixed, 4, 4, 8)) if i % 2 for w in x[:, 0]
    ]


def test_bytes_per_token_are_those_of_what_was_evaluated():
    mixed = mixture("a:0.75,b:0.25")
    mixed.streams[1].bytes_per_token = 5.0
    assert mixed.bytes_per_token(100, 4) == pytest.approx(0.75 * 3 + 0.25 * 5)
    assert mixed.bytes_per_token(2, 4) == pytest.approx(4.0 if mixed.evaluated(2, 4) == [1, 1] else 3.0)
    mixed.streams[1].bytes_per_token = None
    assert mixed.bytes_per_token(100, 4) is None


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
