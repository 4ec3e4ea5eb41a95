"""Signs of life: each worker's event loop touches a file; `python -m worker.alive NAME` says whether it still does."""

import platform
import sys
import time
from pathlib import Path
from typing import Any

from celery import bootsteps

from app.core.config import get_settings

EVERY_S = 10
DEAD_AFTER_S = 60


def sign(name: str) -> Path:
    """The file of the process `name` (housekeeper, data, train) on this node."""
    return get_settings().home_dir / "alive" / f"{name}-{platform.node()}"


def touch(name: str) -> None:
    """Leave a sign of life."""
    path = sign(name)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.touch(mode=0o600)


class Alive(bootsteps.StartStopStep):
    """A step of Celery's consumer: the sign comes from the very loop that receives messages."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    queue = ""

    def __init__(self, consumer: Any, **named: Any) -> None:
        super().__init__(consumer, **named)
        self.timer: Any = None

    def start(self, consumer: Any) -> None:
        touch(Alive.queue)
        self.timer = consumer.timer.call_repeatedly(EVERY_S, touch, (Alive.queue,))

    def stop(self, consumer: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def main() -> None:
    """Exit 0 while the process named first lives, else 1."""
    try:
        age_s = time.time() - sign(sys.argv[1]).stat().st_mtime
    except FileNotFoundError:
        sys.exit(1)
    sys.exit(0 if age_s < DEAD_AFTER_S else 1)


if __name__ == "__main__":
    main()
