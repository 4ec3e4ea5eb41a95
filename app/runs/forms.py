"""What a person may write on the run page."""

from typing import Literal

from pydantic import field_validator

from app.core.forms import FormBase, as_written


class AdjustForm(FormBase):
    """A new value for one parameter of a running training. Bounds are the service's."""

    name: Literal["learning_rate", "epochs", "evaluate_every_steps", "max_hours"]
    value: float

    @field_validator("value", mode="before")
    @classmethod
    def _as_written(cls, value: object) -> object:
        """Numbers as people write them; what is none is left for the sentence about it."""
        return as_written(value)


class QueueForm(FormBase):
    """What to do with a run that waits in the queue."""

    do: Literal["earlier", "later", "first", "high", "normal", "low"]


class NoticeForm(FormBase):
    """How to be told that the run has ended."""

    channel: Literal["webhook", "email"]
    target: str = ""
