"""What preparing found: counts of every step, samples of what it touched, statistics. Kept with the plan."""

from typing import Any

from pydantic import Field

from app.contracts.base import Contract
from app.datasets.statistics import Statistics


class Shown(Contract):
    """One row that a step touched: the text around the first difference, before and after."""

    rid: int
    code: str
    before: str
    after: str | None = None
    of: int | None = None
    twin: str = ""
    score: float | None = None


class StepReport(Contract):
    """What a step did, or would do if it was applied now. `examples` is a seeded sample of at most 50.

    `sampled`: 0 when every row was looked at, else how many were; then the numbers are estimates and `low` to `high`
    is the range of rows touched that the sample allows (95 %). `is_known` false: only the whole set can tell.
    `made`: rows more than before, because some were split.
    """

    name: str
    is_applied: bool
    rows_in: int = 0
    changed: int = 0
    removed: int = 0
    marked: int = 0
    made: int = 0
    codes: dict[str, int] = Field(default_factory=dict)
    examples: list[Shown] = Field(default_factory=list)
    sampled: int = 0
    low: int = 0
    high: int = 0
    is_known: bool = True
    params: dict[str, Any] = Field(
        default_factory=dict, description="suggested for these rows, where a step needs some"
    )


class PrepareReport(Contract):
    """`rows_in` + `made` (by splitting rows) = `rows` kept + `out` + the sum of `unmapped` rows."""

    rows_in: int
    rows: int
    out: int
    unmapped: int
    made: int = 0
    mapping_codes: dict[str, int] = Field(default_factory=dict)
    steps: list[StepReport] = Field(default_factory=list)
    statistics: Statistics
