"""The order of the windows: every one once an epoch, the same in every version."""

import numpy as np

from tokens.order import dropout_seed, permute


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


def test_dropout_seeds_differ():
    seeds = {dropout_seed(s, step, m) for s in range(3) for step in range(20) for m in range(4)}
    assert len(seeds) == 240 and all(0 <= s < 2**63 for s in seeds)


def test_the_order_is_the_same_in_every_version():
    """A checkpoint of yesterday resumes in the order in which it began; a change here breaks each run that is
    under way."""
    assert permute(np.arange(10), 10, key=0).tolist() == [3, 6, 0, 4, 2, 9, 7, 1, 8, 5]
    assert permute(np.array([0, 1, 2]), 10**12, key=1337 * 2**32 + 5).tolist() == [
        358443050640,
        949565012830,
        892796174546,
    ]
    assert dropout_seed(1337, 10, 3) == 8563492622765714348
