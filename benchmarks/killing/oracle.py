"""Watches what must never happen: triggers inside the database, samples of the process table, a look at the disk."""

import contextlib
import sqlite3
import threading
from collections import Counter
from pathlib import Path

from sqlalchemy import select

from app.core.db import reading
from app.runs.models import Attempt, Checkpoint, MetricPoint, Model, Run
from benchmarks.killing.stack import Stack

# A step is inserted once, in order, and deleted before it is computed again: an update, or an insert anywhere but
# after the last step, is a row counted twice or a hole.
_TRIGGERS = """
CREATE TABLE oracle (kind TEXT, run_id TEXT, detail TEXT);
CREATE TRIGGER oracle_rewritten AFTER UPDATE ON metric_points WHEN NEW.name = 'loss' BEGIN
  INSERT INTO oracle VALUES ('doubled', NEW.run_id, 'step ' || NEW.step || ' written twice');
END;
CREATE TRIGGER oracle_order BEFORE INSERT ON metric_points WHEN NEW.name = 'loss' AND NEW.step !=
  1 + coalesce((SELECT max(step) FROM metric_points WHERE run_id = NEW.run_id AND name = 'loss'), 0)
BEGIN
  INSERT INTO oracle VALUES ('doubled', NEW.run_id, 'step ' || NEW.step || ' out of order');
END;
CREATE TRIGGER oracle_new_checkpoint AFTER INSERT ON checkpoints
WHEN NEW.attempt_id IS NOT (SELECT attempt_id FROM runs WHERE id = NEW.run_id) BEGIN
  INSERT INTO oracle VALUES ('stale', NEW.run_id, 'checkpoint ' || NEW.step || ' by ' || NEW.attempt_id);
END;
CREATE TRIGGER oracle_old_checkpoint AFTER UPDATE OF attempt_id ON checkpoints
WHEN NEW.attempt_id IS NOT (SELECT attempt_id FROM runs WHERE id = NEW.run_id) BEGIN
  INSERT INTO oracle VALUES ('stale', NEW.run_id, 'checkpoint ' || NEW.step || ' by ' || NEW.attempt_id);
END;
CREATE TRIGGER oracle_fence AFTER UPDATE ON runs WHEN NEW.fence < OLD.fence BEGIN
  INSERT INTO oracle VALUES ('stale', NEW.id, 'fence ' || NEW.fence || ' after ' || OLD.fence);
END;
CREATE TRIGGER oracle_ends AFTER UPDATE ON runs
WHEN OLD.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state != OLD.state BEGIN
  INSERT INTO oracle VALUES ('stale', NEW.id, NEW.state || ' after ' || OLD.state);
END;
"""


def plant_triggers(database: Path) -> None:
    """Put the watching triggers into the database."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.executescript(_TRIGGERS)


def seen_by_triggers(database: Path) -> Counter[str]:
    """How often each kind fired; the first few are printed."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        rows = connection.execute("SELECT kind, run_id, detail FROM oracle").fetchall()
    for kind, run_id, detail in rows[:10]:
        print(f"  oracle: {kind}: run {run_id}: {detail}")
    return Counter(row[0] for row in rows)


class Sampler:
    """Looks at the process table ten times a second and remembers which trainers lived at the same moment."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.samples = 0
        self.together: set[frozenset[tuple[int, float]]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def overlaps(self) -> int:
        """Pairs of trainers of one run that were alive at the same moment."""
        with reading() as session:
            rows = session.execute(select(Attempt.pid, Attempt.pid_started, Attempt.run_id).where(Attempt.pid > 0))
            owner = {(row.pid, round(row.pid_started, 2)): row.run_id for row in rows}
        pairs = set()
        for group in self.together:
            runs = Counter(owner.get(one, str(one)) for one in group)
            pairs |= {(run, group) for run, count in runs.items() if count > 1}
        for run, group in list(pairs)[:5]:
            print(f"  oracle: overlapping trainers of run {run}: {sorted(group)}")
        return len(pairs)

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            alive = frozenset(self.stack.trainers())
            self.samples += 1
            if len(alive) > 1:
                self.together.add(alive)


def unequal(reference: str) -> tuple[int, int]:
    """Succeeded runs whose weights, or whose curve, differ from those of the undisturbed run."""
    with reading() as session:
        digests = {row.run_id: row.digest for row in session.execute(select(Model.run_id, Model.digest))}
        weights = sum(digest != digests[reference] for digest in digests.values())
        curves = 0
        wanted = _curve(session, reference)
        for run_id in digests:
            curves += _curve(session, run_id) != wanted
    return weights, curves


def _curve(session: object, run_id: str) -> list[object]:
    query = select(MetricPoint.name, MetricPoint.step, MetricPoint.value).where(
        MetricPoint.run_id == run_id, MetricPoint.name.in_(("loss", "validation_loss"))
    )
    return list(session.execute(query.order_by(MetricPoint.name, MetricPoint.step)))  # type: ignore[attr-defined]


def lost() -> int:
    """Runs that did not end with a model."""
    with reading() as session:
        rows = session.execute(select(Run.id, Run.state, Run.sentence).where(Run.state != "succeeded")).all()
    for row in rows[:5]:
        print(f"  oracle: lost: run {row.id} is {row.state}: {row.sentence[:300]}")
    return len(rows)


def orphan_files(home: Path) -> int:
    """Half-written files, checkpoints that no row names, rows whose checkpoint is not there, locks of ended runs."""
    with reading() as session:
        kept_or_lost = Checkpoint.state.in_(("kept", "missing"))
        query = select(Checkpoint.run_id, Checkpoint.dir).where(kept_or_lost)
        named = {home / "runs" / row.run_id / row.dir for row in session.execute(query)}
    there = set((home / "runs").glob("*/checkpoints/*"))
    half = {path for folder in ("runs", "versions", "storage") for path in (home / folder).rglob(".tmp-*")}
    strays = half | (there ^ named) | set((home / "locks").glob("run-*"))
    for path in sorted(strays)[:10]:
        print(f"  oracle: stray: {path.relative_to(home)}")
    return len(strays)
