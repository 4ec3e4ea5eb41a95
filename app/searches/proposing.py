"""Which values to try next: the rest of a grid, or what a tree of Parzen estimators (TPE) expects most of."""

import itertools
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.searches.space import Dimension, rounded

_STARTUP = 4
_TRIES = 25


@dataclass(frozen=True, slots=True)
class Tried:
    """Values that were tried or are being tried, with the lowest validation loss; None: not known, or none."""

    values: dict[str, Any]
    loss: float | None
    is_over: bool


def grid_size(space: Sequence[Dimension], points: int) -> int:
    """How many combinations a grid has."""
    size = 1
    for one in space:
        size *= len(one.values(points))
    return size


def next_of_grid(space: Sequence[Dimension], points: int, tried: Sequence[Tried], seed: int) -> dict[str, Any] | None:
    """The next combination in a shuffled order, so that a budget that ends early has seen all of the room."""
    names = [one.name for one in space]
    every = [dict(zip(names, row, strict=True)) for row in itertools.product(*(one.values(points) for one in space))]
    random.Random(seed).shuffle(every)
    known = [one.values for one in tried]
    return next((one for one in every if one not in known), None)


def next_of_bayes(
    space: Sequence[Dimension], tried: Sequence[Tried], seed: int, first: dict[str, Any]
) -> dict[str, Any] | None:
    """The values that TPE proposes (Bergstra et al. 2011, as in Optuna); `first` is tried before everything else.

    The study is made anew from the rows each time: nothing but the database has to survive. None when new values can
    no longer be found.
    """
    if not tried:
        return first
    # Loaded where it is needed: the web process has no use for it.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {one.name: _distribution(one) for one in space}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "constant_liar is experimental"
        sampler = optuna.samplers.TPESampler(
            seed=seed + len(tried), n_startup_trials=_STARTUP, constant_liar=True, multivariate=True
        )
        study = optuna.create_study(sampler=sampler)
        for one in tried:
            if one.is_over and one.loss is None:
                continue  # it failed or was cancelled: it says nothing about its values
            state = optuna.trial.TrialState.COMPLETE if one.is_over else optuna.trial.TrialState.RUNNING
            params = {dim.name: _inside(dim, one.values[dim.name]) for dim in space}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=kinds, state=state, value=one.loss if one.is_over else None
                )
            )
        known = [one.values for one in tried]
        for _ in range(_TRIES):
            asked = study.ask(kinds)
            values = {dim.name: _outside(dim, asked.params[dim.name]) for dim in space}
            if values not in known:
                return values
    return None


def _distribution(one: Dimension) -> Any:
    from optuna import distributions

    if one.scale == "choice":
        return distributions.CategoricalDistribution(one.choices)
    if one.scale == "doubling":
        return distributions.IntDistribution(0, len(one.values(0)) - 1)
    if one.scale == "integer":
        return distributions.IntDistribution(int(one.low), int(one.high))
    return distributions.FloatDistribution(one.low, one.high, log=one.scale == "log")


def _inside(one: Dimension, value: Any) -> Any:
    """A value as the sampler counts it: doublings by their exponent, numbers inside their range."""
    if one.scale == "choice":
        return value
    if one.scale == "doubling":
        steps = one.values(0)
        return min(range(len(steps)), key=lambda i: abs(steps[i] - value))
    inside = min(one.high, max(one.low, value))
    return int(inside) if one.scale == "integer" else inside


def _outside(one: Dimension, value: Any) -> Any:
    if one.scale == "doubling":
        return one.values(0)[value]
    return value if one.scale in ("choice", "integer") else rounded(value)
