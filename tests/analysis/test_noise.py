"""Welch's test against Student's table, and at the ends of its range."""

import math
import statistics

import pytest

from analysis import noise


@pytest.mark.parametrize("df, t", [(2, 4.302653), (4, 2.776445), (10, 2.228139)])
def test_p_of_difference(df, t):
    """Student's table: two samples of n and equal spread have df = 2 n - 2, and t at 5 %."""
    n = df // 2 + 1
    a = [i - (n - 1) / 2 for i in range(n)]
    shift = t * math.sqrt(2 * statistics.variance(a) / n)
    assert noise.p_of_difference(a, [x + shift for x in a]) == pytest.approx(0.05, abs=1e-6)
    assert noise.p_of_difference(a, a) == pytest.approx(1.0)


def test_p_of_difference_without_noise():
    assert noise.p_of_difference([1.0], [2.0, 3.0]) is None
    assert noise.p_of_difference([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert noise.p_of_difference([1.0, 1.0], [1.0, 1.0]) == 1.0
