"""Learning rates as functions of the step: ``schedule(step) -> rate``, steps from 0, so that the
first update uses ``schedule(0)``.

``scheduler(optimizer, schedule)`` hands one to PyTorch. The three families of warm-up differ where
it matters:

    BERT, ALBERT    rate * step / warmup, then the decay *as if there had been no warm-up*: the rate jumps down a little
    ELECTRA         the decayed rate times min(1, step / warmup): no jump, and a lower peak
    XLM             from 1e-7 up to the rate, then rate * sqrt(warmup / step), or cosines with restarts
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import ConfigError

Schedule = Callable[[int], float]


def polynomial_decay(rate: float, total: int, power: float = 1.0) -> Schedule:
    """``rate * (1 - step / total)^power``, zero from ``total`` on."""
    _at_least("total", total, 1)
    return lambda step: rate * (1 - min(step, total) / total) ** power


def warmup_then_decay(rate: float, total: int, warmup: int, power: float = 1.0, start: int = 0) -> Schedule:
    """BERT's and ALBERT's: ``rate * (step - start) / warmup`` up to ``rate``, then
    ``polynomial_decay`` counted from step 0.

    ``start`` moves the ramp (for training that goes on at a later step); before it the rate is
    negative, as in ALBERT's code. ``warmup=0`` is no ramp.
    """
    decay = polynomial_decay(rate, total, power)
    _at_least("warmup", warmup, 0)
    return lambda step: rate * (step - start) / warmup if warmup and step - start < warmup else decay(step)


def warmup_times_decay(rate: float, total: int, warmup: int, power: float = 1.0) -> Schedule:
    """ELECTRA's: ``polynomial_decay`` times ``min(1, step / warmup)``."""
    decay = polynomial_decay(rate, total, power)
    _at_least("warmup", warmup, 0)
    return lambda step: decay(step) * min(1.0, step / warmup) if warmup else decay(step)


def inverse_square_root(rate: float, warmup: int, initial: float = 1e-7, power: float = 0.5) -> Schedule:
    """XLM's ``adam_inverse_sqrt``: from ``initial`` straight up to ``rate`` in ``warmup`` steps,
    then ``rate * (warmup / step)^power``.
    """
    _at_least("warmup", warmup, 1)
    return lambda step: (
        initial + step * (rate - initial) / warmup if step < warmup else rate * warmup**power * step**-power
    )


def cosine_restarts(
    rate: float,
    warmup: int,
    period: int,
    growth: float = 1.0,
    shrink: float = 0.75,
    initial: float = 1e-7,
    lowest: float = 1e-9,
) -> Schedule:
    """XLM's ``adam_cosine``: after the warm-up half cosines from ``rate`` to ``lowest``, each
    ``growth`` times as long as the one before.

    Cycle i scales both ends by ``shrink^i``.
    """
    _at_least("warmup", warmup, 0)
    _at_least("period", period, 1)

    def schedule(step: int) -> float:
        if step < warmup:
            return initial + step * (rate - initial) / warmup
        since = step - warmup
        if growth == 1:
            cycle, length, done = since // period, float(period), float(since % period)
        else:
            cycle = math.floor(math.log(1 - since / period * (1 - growth), growth))
            length = growth**cycle * period
            done = since - (1 - growth**cycle) / (1 - growth) * period
        high, low = rate * shrink**cycle, lowest * shrink**cycle
        return low + (high - low) * (1 + math.cos(math.pi * done / length)) / 2

    return schedule


def scheduler(optimizer: Optimizer, schedule: Schedule, rate: float) -> LambdaLR:
    """Let PyTorch follow ``schedule``, which was built for ``rate``; call ``step()`` after each
    update of ``optimizer``.

    A group whose own rate is ``f * rate`` (``zoo.training.optimizers.layerwise_groups``) follows
    ``f`` times the schedule.
    """
    if rate <= 0:
        raise ConfigError(f"rate={rate} must be above zero")
    return LambdaLR(optimizer, lambda step: schedule(step) / rate)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}")
