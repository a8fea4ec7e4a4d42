"""Several datasets in exact proportion."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from toy_tokens import BASE, Source, mixture, windows_of

from tokens.loader import BatchLoader, evaluation_batches
from tokens.mixture import Mixture, parse_mixture

pytest_plugins = ["tokens_fixtures"]


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
    )  # names and places are not part of it
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

    assert counts(mixture(), 5, 100) == [70, 20, 10]
    assert counts(mixture(), 1, 7) == [5, 1, 1]
    assert counts(mixture(windows=(5000, 30, 2000)), 50, 1000) == [
        105,
        30,
        15,
    ]  # b has 30 windows, so all parts shrink
    mixed = mixture("a:0.75,b:0.25")
    assert [int(w) for x, _ in evaluation_batches(mixed, 4, 4, 32, 1, 2) for w in x[:, 0]] == [
        int(w) for i, (x, _) in enumerate(evaluation_batches(mixed, 4, 4, 32)) if i % 2 for w in x[:, 0]
    ]


def test_bytes_per_token_are_those_of_what_was_evaluated():
    mixed = mixture("a:0.75,b:0.25")
    mixed.streams[1].bytes_per_token = 5.0
    assert mixed.bytes_per_token(100, 4) == pytest.approx(0.75 * 3 + 0.25 * 5)
    assert mixed.bytes_per_token(2, 4) == pytest.approx(4.0 if mixed.evaluated(2, 4) == [1, 1] else 3.0)
    mixed.streams[1].bytes_per_token = None
    assert mixed.bytes_per_token(100, 4) is None
