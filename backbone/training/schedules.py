"""Learning rates of the published recipes: the value that each iteration's optimizer step uses."""

import numpy as np


def half_cosine(base: float, final: float, steps: int) -> np.ndarray:
    """`steps` values from `base` along half a cosine; `final` would be the next one.

    Args:
        base: first value.
        final: the value behind the last.
        steps: how many values.
    """
    phase = np.pi * np.arange(steps) / max(steps, 1)
    return final + 0.5 * (base - final) * (1 + np.cos(phase))


def unified_schedule(
    epochs: int, warmup_epochs: int, iterations: int, base: float, final: float, warmup_start: float = 0.0
) -> np.ndarray:
    """A line from `warmup_start` to `base`, both ends included, then half a cosine; one value for each iteration.

    Args:
        epochs: of the run, with those of the warm-up.
        warmup_epochs: of the warm-up.
        iterations: of an epoch.
        base: highest value.
        final: the value behind the last.
        warmup_start: first value.

    Source: recipes of the unified networks, arXiv 2211.05781; weight decay follows the same rule.
    """
    warmup = warmup_epochs * iterations
    return np.concatenate(
        [np.linspace(warmup_start, base, warmup), half_cosine(base, final, epochs * iterations - warmup)]
    )


def vheat_schedule(
    epochs: int, warmup_epochs: int, iterations: int, base: float, final: float, warmup_start: float
) -> np.ndarray:
    """A line that reaches `base` one step after the warm-up, then half a cosine; all one iteration late.

    The published loop moves the scheduler after the optimizer, so iterations 0 and 1 both use `warmup_start`.
    Rates are those after scaling by the total batch over 512.

    Args:
        epochs: of the run, with those of the warm-up.
        warmup_epochs: of the warm-up.
        iterations: of an epoch.
        base: highest value.
        final: the value behind the last.
        warmup_start: first value.

    Source: recipe of vHeat, arXiv 2405.16555.
    """
    warmup = warmup_epochs * iterations
    total = epochs * iterations
    line = warmup_start + (base - warmup_start) * np.arange(warmup) / max(warmup, 1)
    on_time = np.concatenate([line, half_cosine(base, final, total - warmup)])
    return np.concatenate([on_time[:1], on_time[: total - 1]])


def warmup_factor(step: int, steps: int, start: float) -> float:
    """Factor of the learning rate in a linear warm-up: `start` at step 0, 1 from step `steps` - 1 on.

    Args:
        step: counted from 0.
        steps: of the warm-up; 0 for none.
        start: the first factor, from 0 to 1.

    Source: detection and segmentation recipes of vHeat (arXiv 2405.16555) and the unified networks (2211.05781).
    """
    return 1.0 if step >= steps - 1 else start + (1 - start) * step / (steps - 1)


def poly_factor(step: int, begin: int, steps: int, power: float) -> float:
    """Factor that falls from 1 at step `begin` to 0 at the last of `steps`, as a power of what is left.

    Args:
        step: counted from 0.
        begin: first step of the fall.
        steps: of the whole run.
        power: the exponent.
    """
    length = steps - begin - 1
    return 1.0 if step <= begin or length <= 0 else (1 - (step - begin) / length) ** power
