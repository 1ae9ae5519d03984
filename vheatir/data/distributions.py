"""Numbers that a degradation draws for each sample, as an option says it: fixed, one of a list, or from a range."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vheatir.backbone.training.schema import is_number
from vheatir.errors import UserError


@dataclass(frozen=True)
class Distribution:
    """Numbers to draw from: one of `choices`, or uniformly from `low` .. `high` (both ends included for integers).

    Attributes:
        choices: each as likely as the others; empty for a range.
        low: least number of a range.
        high: its largest.
        integer: whole numbers only.
        log: the logarithm is drawn uniformly: a number between 1 and 2 is as likely as one between 10 and 20.
    """

    choices: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    integer: bool = False
    log: bool = False

    @classmethod
    def parse(cls, value: object, key: str, low: float, high: float, integer: bool = False) -> "Distribution":
        """Read the option `key`: `25`, `[15, 25, 50]` (one of them) or `{min: 0, max: 55}`, each in low .. high.

        A range with `log: true` is drawn evenly in the logarithm.

        Args:
            value: as the options file has it.
            key: name of the option, for messages.
            low: least value.
            high: largest value.
            integer: take whole numbers only.
        """
        span = isinstance(value, dict)
        log = span and value.get("log", False)
        if not isinstance(log, bool):
            raise UserError(f"{key}: log: expected true or false, got {log!r}")
        numbers: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if span:
            if set(value) - {"log"} != {"min", "max"}:
                raise UserError(
                    f"{key}: a range is written {{min: …, max: …}}, with log: true too where wanted, "
                    f"got keys {sorted(map(str, value))}"
                )
            numbers = [value["min"], value["max"]]
        kind = "an integer" if integer else "a number"
        if not numbers or not all(is_number(number, integer) for number in numbers):
            raise UserError(
                f"{key}: expected {kind}, a list to choose from such as [{low}, {high}], or a range "
                f"{{min: {low}, max: {high}}}, got {value!r}"
            )
        if not all(low <= number <= high for number in numbers) or (span and numbers[0] > numbers[1]):
            raise UserError(f"{key}: expected values from {low} to {high}, the smaller first in a range, got {value!r}")
        if log and numbers[0] <= 0:
            raise UserError(f"{key}: a range with log: true starts above 0, got {value!r}")
        if span:
            return cls(low=numbers[0], high=numbers[1], integer=integer, log=log)
        return cls(choices=tuple(numbers), integer=integer)

    def draw(self, rng: np.random.Generator) -> float:
        """One number; an int when `integer`."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.log:
            # Each integer has the share from itself to the next one.
            number = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high + self.integer))))
            return min(int(number), int(self.high)) if self.integer else number
        if self.integer:
            return int(rng.integers(int(self.low), int(self.high), endpoint=True))
        return float(rng.uniform(self.low, self.high))

    def only(self, key: str) -> float:
        """The one fixed number; a list or a range is a UserError, since a test set is degraded with one."""
        if len(self.choices) != 1:
            raise UserError(f"{key}: validation and test need one fixed value; give each value a dataset of its own")
        return self.choices[0]
