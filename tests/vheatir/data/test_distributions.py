"""Numbers that degradations draw: evenly over a range, or over its logarithm."""

import numpy as np
import pytest

from vheatir.data.distributions import Distribution


def draws(value, integer, count=4000):
    distribution = Distribution.parse(value, "quality", 0, 100, integer)
    rng = np.random.default_rng(0)
    return np.array([distribution.draw(rng) for _ in range(count)])


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize(("log", "middle"), [(False, 50), (True, 22)])
def test_half_of_the_numbers_lie_below_the_middle_of_the_range_or_of_its_logarithm(log, middle, integer):
    found = draws({"min": 5, "max": 95, "log": log}, integer)
    assert found.min() >= 5 and found.max() <= 95
    assert abs((found < middle).mean() - 0.5) < 0.03


def test_every_integer_of_a_range_is_drawn():
    found = draws({"min": 1, "max": 4, "log": True}, integer=True)
    shares = np.bincount(found, minlength=5)[1:] / len(found)
    np.testing.assert_allclose(shares, np.log([2, 3 / 2, 4 / 3, 5 / 4]) / np.log(5), atol=0.03)
    assert draws({"min": 7, "max": 7, "log": True}, integer=True).tolist() == [7] * 4000
