"""How long work waits for the model server: while it starts for some minutes, while it is full as long as it takes."""

import time
from collections.abc import Callable
from typing import TypeVar

from app.contracts.generation import Waiting
from app.core.errors import Unavailable
from app.inference.client import Full
from app.inference.waiting import Waits

PATIENCE_S = 180.0  # for a server that starts, beside a training; nothing else that is waited for is counted
T = TypeVar("T")
Hears = Callable[[Waiting], None]


def patiently(call: Callable[[Hears], T], told: Hears) -> T:
    """Repeat while the model server is starting or restarting, for up to three minutes; where a model has to wait
    there, or too many wait already, for as long as that takes.

    `told` hears what is waited for, also what `call` hands to the function that it is given; what it raises ends all.
    """
    heard_at, wait_s = time.monotonic(), 0.5

    def heard(waiting: Waiting) -> None:
        nonlocal heard_at, wait_s
        heard_at, wait_s = time.monotonic(), 0.5
        told(waiting)

    while True:
        try:
            return call(heard)
        except Waits as waits:
            heard(waits.waiting)
            continue
        except Full:
            heard(Waiting(why="memory"))
        except Unavailable:
            if time.monotonic() > heard_at + PATIENCE_S:
                raise
            told(Waiting(why="server"))
        time.sleep(wait_s)
        wait_s = min(5.0, wait_s * 2)
