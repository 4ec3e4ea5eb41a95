"""How well a mapping fits: 1,000 rows of a file are tried, and those that do not fit say why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.datasets.mapping import Mapping, apply, is_usable
from app.datasets.tables import ROW, count, page
from app.datasets.turns import text_of

FIRST_ROWS, SPREAD_ROWS, PLACES = 200, 800, 8
MISFITS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Misfit:
    """A row that cannot be used: its line, why, and its first cells."""

    row: int
    codes: tuple[str, ...]
    cells: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Fit:
    """`looked` rows were tried, `usable` of them fit; `codes` counts what was found in all of them."""

    looked: int = 0
    usable: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    misfits: list[Misfit] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the tried rows that fit, 0 to 1."""
        return self.usable / self.looked if self.looked else 0.0


def sampled(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The first 200 rows and 800 more from eight places evenly over the rest; all rows where there are no more."""
    total = count(paths)
    if total <= FIRST_ROWS + SPREAD_ROWS:
        return page(paths, 0, total)
    each, rest = SPREAD_ROWS // PLACES, total - FIRST_ROWS
    rows = page(paths, 0, FIRST_ROWS)
    for place in range(PLACES):
        rows += page(paths, FIRST_ROWS + place * (rest - each) // (PLACES - 1), each)
    return rows


def fit(paths: Sequence[Path], mapping: Mapping) -> Fit:
    """Try the mapping on sampled rows."""
    codes: Counter[str] = Counter()
    misfits: list[Misfit] = []
    rows = sampled(paths)
    usable = 0
    for values in rows:
        number = values.pop(ROW)
        mapped = apply(values, mapping)
        codes.update(mapped.codes)
        if is_usable(mapped):
            usable += 1
        elif len(misfits) < MISFITS_SHOWN:
            cells = [(name, text_of(cell)[:200]) for name, cell in list(values.items())[:4]]
            misfits.append(Misfit(number, mapped.codes, cells))
    return Fit(len(rows), usable, dict(codes.most_common()), misfits)
