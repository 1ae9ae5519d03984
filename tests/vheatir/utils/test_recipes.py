"""Values of `--set KEY=VALUE`, as `vheatir analyze` and `vheatir export` take them."""

import pytest

from vheatir.errors import UserError
from vheatir.utils.recipes import key_values


def test_values_are_those_of_a_recipe():
    given = ["rate=1e-1", "scale=2e-6", "steps=3e2", "size=64", "flag=true", "depths=[2, 2]", "name=a=b", "none="]
    assert key_values(given) == {
        "rate": 0.1,
        "scale": 2e-6,
        "steps": 300,
        "size": 64,
        "flag": True,
        "depths": [2, 2],
        "name": "a=b",
        "none": None,
    }


@pytest.mark.parametrize("text", ["depths=[2, 2", "a={b: 1", "a='", "a=b: c: d"])
def test_what_is_not_yaml_is_refused(text):
    with pytest.raises(UserError, match="the value is not valid YAML"):
        key_values([text])


def test_what_is_no_pair_is_refused():
    with pytest.raises(UserError, match="expected KEY=VALUE"):
        key_values(["img_size"])
