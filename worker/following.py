"""A limited child process that obeys one order: its lines are followed, its lease kept, its end always certain."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.core.config import ROOT
from app.core.queue import ring
from app.core.work import Lease, LostLease
from worker.celery_app import draining

LOOK_EVERY_S = 0.3
TRACE_BYTES = 4000


@dataclass(frozen=True)
class Outcome:
    """The last line a child said ({} when it said nothing), its exit code, the end of its error output."""

    last: dict[str, Any]
    returncode: int
    trace: str


def obeyed(
    lease: Lease,
    module: list[str],
    order: str,
    environment: Mapping[str, str],
    again: str,
    tell: Callable[[dict[str, Any]], None],
    begun: Callable[[int], None] = lambda pid: None,
) -> Outcome:
    """Run `python -m *module`, give it `order` (a line of JSON), hear its JSON lines until it ends.

    `begun` is told the child's process id. `tell` is called with each line, and several times a second with the newest
    when there is no other: it keeps the lease and sees a cancellation. When this worker is told to stop, the row is
    queued for the task `again`, not counting the attempt.
    Raises LostLease, and whatever `tell` raises; the child and its children are dead then.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            begun(child.pid)
            last = _followed(lease, child, order, again, tell)
        finally:
            _stop(child)
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - TRACE_BYTES))
        return Outcome(last, child.returncode, errors.read().decode(errors="replace"))


def _followed(
    lease: Lease, child: subprocess.Popen[bytes], order: str, again: str, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    # One that has died before it has read its order says why on its error output.
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(order.encode() + b"\n")
    last: dict[str, Any] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(LOOK_EVERY_S):
                line = child.stdout.readline()
                if not line:
                    child.wait()
                    return last
                last = json.loads(line)
            if draining.is_set():
                give_back(lease, again)
            tell(last)


def give_back(lease: Lease, again: str) -> None:
    """This worker is told to stop: queue the row again without counting the attempt. Raises LostLease."""
    with lease.write(state="queued", attempt_id=None, attempts=lease.model.attempts - 1) as session:
        ring(session, again, lease.row_id)
    raise LostLease(lease.row_id)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout is not None:
        child.stdout.close()
