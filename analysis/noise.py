"""Whether two configurations differ by more than their seeds do."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np

P_NOISE = 0.05  # of a difference that would be this rare without a cause, over all pairs that could have led


def p_of_difference(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Welch's t-test (1947): how often two samples of one mean lie at least this far apart; None where
    either has one value.

    With t = sqrt(df) tan(angle) Student's density becomes cos(angle)^(df - 1), which is smooth and ends at
    pi / 2."""
    if min(len(a), len(b)) < 2:
        return None
    errors = [stdev(values) ** 2 / len(values) for values in (a, b)]
    if not sum(errors):
        return 1.0 if mean(a) == mean(b) else 0.0
    t = abs(mean(a) - mean(b)) / math.sqrt(sum(errors))
    shares = [e / sum(errors) for e in errors]  # whose squares are not too small for a float
    df = 1 / sum(share**2 / (len(values) - 1) for share, values in zip(shares, (a, b), strict=True))
    tail, whole = (np.linspace(start, math.pi / 2, 20_001) for start in (math.atan(t / math.sqrt(df)), 0.0))
    integrals = [float(np.trapezoid(np.cos(x).clip(0) ** (df - 1), x)) for x in (tail, whole)]
    return integrals[0] / integrals[1]


def is_larger_than_noise(p: float, n_groups: int) -> bool:
    """Whether so small a p is rare enough among the pairs of the groups, any of which might have led
    (Bonferroni)."""
    return p < P_NOISE / math.comb(n_groups, 2)
