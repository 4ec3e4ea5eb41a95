"""What a person may write when a search begins. The ranges of the parameters are read by space.py."""

from typing import Any

from pydantic import field_validator

from app.core.forms import FormBase, as_written


class SearchForm(FormBase):
    """How it looks for values, and when it ends. Bounds are the service's."""

    way: str = "bayesian"
    points: int = 3
    budget_runs: int | None = None
    budget_hours: float | None = None
    keeps_all: bool = False
    client_request_id: str = ""

    @field_validator("points", "budget_runs", "budget_hours", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """Empty is nothing; numbers as people write them."""
        return None if value == "" else as_written(value)

    @field_validator("points", mode="before")
    @classmethod
    def _needed(cls, value: Any) -> Any:
        return 3 if value in (None, "") else value
