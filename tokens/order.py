"""Which window a training sample is: a pure function of the seed and the sample's number, with nothing to
save and nothing to replay. To resume is to set the step.

A split of n tokens holds (n - 1) // T windows of T tokens and their successors. Each epoch visits every
window once, in an order that a keyed permutation gives without storing it."""

from functools import lru_cache

import numpy as np

# Keys of training are of (seed, epoch, source); this word of 128 bits sets the evaluations' apart from all of them
EVALUATION = int.from_bytes(b"nanofoundry eval")


@lru_cache(
    maxsize=64
)  # of the epochs and blocks that a batch touches; deriving them costs as much as a batch's rounds
def round_keys_of(key: int | tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(6, np.uint64)


def permute(index: np.ndarray, n: int, key: int | tuple[int, ...]) -> np.ndarray:
    """A bijection of [0, n), chosen by `key`, at each index: a Feistel network over the next even number of
    bits, walked until it lands inside (Black & Rogaway 2002). O(1) memory at any n below 2^62."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = round_keys_of(key)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * np.uint64(
                0x9E3779B97F4A7C15
            )  # wraps; so do the next two lines of splitmix64
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) & mask)
        return (left << half) | right

    out = encrypt(np.asarray(index, dtype=np.uint64))
    while (outside := out >= n).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def permute_within(period: int, index: np.ndarray, seed: int, *stream: int) -> tuple[np.ndarray, np.ndarray]:
    """(index // period, index % period permuted under a key of its own for each quotient). `stream` sets
    apart what shares a seed."""
    quotient, position = np.divmod(index, period)
    for q in set(quotient.tolist()):
        here = quotient == q
        key = seed * 2**32 + q
        position[here] = permute(position[here], period, (key, *stream) if stream else key)
    return quotient, position


def evaluation_windows(n: int, n_windows: int, source: int) -> np.ndarray:
    """Which n of a split's windows an evaluation takes: none twice, and the first of them the same for every n. No
    seed is part of it, and its key is one that no seed, epoch or source can be: what is measured has nothing to do
    with what was trained on first."""
    return permute(np.arange(n), n_windows, (EVALUATION, source))


def training_window(seed: int, sample: np.ndarray, n_windows: int, *stream: int) -> np.ndarray:
    """The window that the global sample number trains on. Samples count from the run's start, over all
    processes."""
    return permute_within(n_windows, sample, seed, *stream)[1]


def dropout_seed(seed: int, step: int, micro_step: int) -> int:
    """Seeds torch's generators for one micro-step, so that dropout, too, is a function of the step at any
    world size."""
    return int(
        np.random.SeedSequence((seed, step, micro_step)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
