"""What an answer that has not begun waits for, as pages show it: a sentence, and beside it a time that counts."""

from dataclasses import asdict, dataclass
from typing import Any

from app.contracts.generation import Waiting
from app.core.numbers import duration
from app.inference.waiting import sentence

QUIET_S = 1.0  # so soon nobody wonders why nothing is said


@dataclass(frozen=True)
class Waited:
    """`sentence` names sizes, `plain` does not: in a blind comparison they would tell which model is which. `beside`:
    what counts. `why`: the kind of wait, as `Waiting` has it."""

    sentence: str
    plain: str
    beside: str = ""
    why: str = ""

    @classmethod
    def of(cls, waiting: Waiting) -> "Waited | None":
        """As it is now; None while it is too early to say anything."""
        if waiting.why != "memory" and waiting.so_far_s < QUIET_S:
            return None
        beside = "" if waiting.why == "turn" else duration(waiting.so_far_s)
        end = ""
        if waiting.why == "memory":
            left_s = waiting.training_left_s
            beside = "" if left_s is None else f"{duration(max(60.0, left_s))} left"
            end = " The answer begins by itself then."
        told, plain = (sentence(waiting, with_sizes=sizes, with_duration=False) + end for sizes in (True, False))
        return cls(told, plain, beside, waiting.why)

    @classmethod
    def kept_in(cls, statistics: dict[str, Any]) -> "Waited | None":
        """What the row of an answer keeps; None where it waits for nothing."""
        kept = statistics.get("waiting")
        return cls(**kept) if kept else None

    @property
    def kept(self) -> dict[str, Any]:
        """As a row and an event keep it."""
        return asdict(self)
