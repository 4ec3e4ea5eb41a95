"""Room for training: what the worker of an attempt tells the model server of the same machine, and what comes back."""

from pydantic import Field

from app.contracts.base import Contract


class Room(Contract):
    """An attempt holds so much of this machine's memory, for about so many seconds more (None: nobody knows). Unless it
    is told again it lapses after `lapses_s`. A later attempt of the same run takes its place at once: the worker of the
    one before was killed."""

    attempt_id: str = Field(min_length=1, max_length=40)
    run_id: str = Field("", max_length=40)
    held_bytes: int = Field(ge=0)
    left_s: float | None = Field(None, ge=0)
    lapses_s: float = Field(gt=0, le=3600)


class Unloaded(Contract):
    """A model that had to make room: its reference, empty for a base that only served adapters, and its size."""

    ref: str
    size_bytes: int


class MadeRoom(Contract):
    """What was unloaded because of a room."""

    unloaded: list[Unloaded] = Field(default_factory=list)
