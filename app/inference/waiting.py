"""What an answer waits for, in words: for chat, API and long work alike. Nothing of another workspace is told."""

import math

from app.contracts.generation import Waiting
from app.core.errors import Unavailable
from app.core.numbers import duration, later, size

LONGEST_RETRY_S = 600


class Waits(Unavailable):
    """A model is still being loaded, or waits for memory: asking again later helps."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        loading = "The model is still being loaded. It goes on loading; ask again in a few seconds."
        super().__init__(
            f"{sentence(waiting)} Ask again then." if waiting.why == "memory" else loading,
            retry_after_s=retry_after_s(waiting),
            code="model_waiting" if waiting.why == "memory" else "model_loading",
        )


def sentence(waiting: Waiting, *, with_sizes: bool = True, with_duration: bool = True) -> str:
    """What it waits for and until when; `with_sizes` false where they would tell one model from another,
    `with_duration` false where it counts down beside the sentence."""
    match waiting.why:
        case "server":
            return "The model server is starting."
        case "loading" if waiting.is_again:
            return "Loading the model again: it was unloaded to make room for training."
        case "loading":
            return "Loading the model."
        case "turn" if waiting.before:
            return f"Waiting for its turn: {_before(waiting.before)}."
        case "turn":
            return "Waiting for its turn: it is next."
    needs = f"This model needs about {size(waiting.needed_bytes)}" if with_sizes else "This model waits for memory"
    if not waiting.training_bytes:
        return f"{needs}. Other answers hold the memory until they are done."
    until = "until it ends"
    if (left_s := waiting.training_left_s) is not None:
        until = f"until about {later(left_s)}" + (f" ({duration(max(60.0, left_s))})" if with_duration else "")
    if not with_sizes:
        return f"{needs}. Training holds it {until}."
    left = size(waiting.left_bytes) if waiting.left_bytes else "nothing"
    return f"{needs}. Training holds the memory {until}; {left} is left for answers."


def retry_after_s(waiting: Waiting) -> int:
    """When asking again makes sense: at the end of the training, at most ten minutes ahead."""
    if waiting.why != "memory":
        return 10
    left_s = 60.0 if waiting.training_left_s is None else waiting.training_left_s
    return max(10, min(LONGEST_RETRY_S, math.ceil(left_s)))


def _before(count: int) -> str:
    return "1 answer is before it" if count == 1 else f"{count} answers are before it"
