"""Which processes live: each holds a lock that the kernel frees with it, so what a dead one left is noticed at once."""

import contextlib
import fcntl
import os
import platform
import time
from functools import lru_cache
from pathlib import Path

from app.core.config import get_settings
from app.core.db import new_id

_SWEPT_AFTER_S = 3600


def _folder() -> Path:
    return get_settings().home_dir / "locks"


@lru_cache
def _machine() -> str:
    """The running kernel, the same for all containers on it; elsewhere the machine's name."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()[:36]


@lru_cache
def own() -> str:
    """This process's name, for rows of work that ends with it. The first call takes the lock."""
    folder, name = _folder(), new_id()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob("life-*.lock"):
        # Old ones only: a younger process may have made its file and not yet locked it.
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _SWEPT_AFTER_S and _is_free(path):
                path.unlink()
    descriptor = os.open(folder / f"life-{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return f"{_machine()}:{name}"


def is_over(life: str) -> bool:
    """Whether the process of that name is certainly dead. False also where this cannot be known from here."""
    machine, _, name = life.rpartition(":")
    if not name or machine != _machine():
        return False
    with contextlib.suppress(OSError):
        return _is_free(_folder() / f"life-{name}.lock")
    return False


def _is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
