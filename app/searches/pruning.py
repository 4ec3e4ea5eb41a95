"""Ending a trial early by the median rule (Golovin et al. 2017, Google Vizier), on validation loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# (rows read, validation loss): rows, not steps, so that trials with different batches are compared fairly.
Looks = Sequence[tuple[int, float]]
LEAST_LOOKS = 3
LEAST_OTHERS = 3


@dataclass(frozen=True, slots=True)
class Behind:
    """A trial's best loss so far, and the middle of the others' best when they had read as many rows."""

    best: float
    middle: float
    others: int


def behind(own: Looks, others: Sequence[Looks]) -> Behind | None:
    """Whether a trial is worse than the median of those that came at least as far; None: it goes on.

    It has three looks at unseen rows, and three others to be compared with, before anything is said.
    """
    if len(own) < LEAST_LOOKS:
        return None
    rows = own[-1][0]
    theirs = [min(loss for at, loss in looks if at <= rows) for looks in others if _reached(looks, rows)]
    if len(theirs) < LEAST_OTHERS:
        return None
    best, middle = min(loss for _, loss in own), median(theirs)
    return Behind(best, middle, len(theirs)) if best > middle else None


def _reached(looks: Looks, rows: int) -> bool:
    return bool(looks) and looks[-1][0] >= rows and looks[0][0] <= rows
