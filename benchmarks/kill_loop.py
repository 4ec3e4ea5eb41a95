"""Kills and freezes parts of the real stack at random while it trains, and counts what must never happen.

Prints a table and one last line; ends with 1 when a run was lost, a metric row doubled, two trainers of a run lived at
once, a stale attempt committed, a file or process was left over, or weights differ from an undisturbed run's.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
from sqlalchemy import func, select

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LEASE_S = 3.0
SETTINGS = {
    "GPT_BUILDER_LEASE_TTL_S": str(LEASE_S),
    "GPT_BUILDER_LEASE_HEARTBEAT_S": "0.5",
    "GPT_BUILDER_LEASE_SELF_STOP_S": "2",
    "GPT_BUILDER_RECONCILE_EVERY_S": "0.5",
}
# Victim, signal, weight. Freezes last up to twice the lease.
EVENTS = (
    ("trainer", signal.SIGKILL, 6),
    ("trainer", signal.SIGSTOP, 3),
    ("worker", signal.SIGKILL, 5),
    ("worker", signal.SIGSTOP, 5),
    ("worker and trainer", signal.SIGKILL, 2),
    ("redis", signal.SIGKILL, 2),
    ("redis", signal.SIGSTOP, 2),
    ("web", signal.SIGKILL, 2),
    ("web", signal.SIGSTOP, 1),
    ("housekeeper", signal.SIGKILL, 1),
    ("housekeeper", signal.SIGSTOP, 1),
)
# What brings a planted defect to light, and the count that it must raise.
PLANTED = {
    "no-fence": ("worker", signal.SIGSTOP, "stale commits"),
    "no-lock": ("worker", signal.SIGSTOP, "overlapping trainers"),
    "no-forgetting": ("trainer", signal.SIGKILL, "doubled or missing metric rows"),
    "no-state": ("trainer", signal.SIGKILL, "unequal weights"),
}
AHEAD = 3  # runs that are kept queued or training
MAX_STALLED = 1  # an attempt is only ended on purpose while the run is this far from being given up
END_WITHIN_S = 600


def recipe(steps: int):
    """A GPT from scratch small enough for two at a time on two cores, with runs of more than ten leases."""
    from app.contracts.recipe import ScratchSpec
    from tests.factories import a_recipe

    return a_recipe(
        scratch=ScratchSpec(layers=2, heads=4, width=64, context_length=64, tokenizer="characters"),
        max_steps=steps,
        epochs=1000,
        batch_size=8,
        micro_batch_size=8,
        max_length_tokens=64,
        evaluate_every_steps=steps // 5,
        checkpoint_every_steps=steps // 20,
    )


class Loop:
    """The runs, the events and the waiting."""

    def __init__(self, home: Path, steps: int, seed: int, worker_command: list[str], ahead: int) -> None:
        from app.core.db import transaction
        from benchmarks.killing import oracle
        from benchmarks.killing.stack import Stack
        from tests.factories import a_world

        self.home, self.steps, self.chance, self.ahead = home, steps, random.Random(seed), ahead
        with transaction() as session:
            self.world = a_world(session)
        oracle.plant_triggers(home / "gpt-builder.db")
        self.stack = Stack(home, worker_command)
        self.sampler = oracle.Sampler(self.stack)
        self.runs: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.longest_away_s = 0.0

    def start_run(self) -> str:
        from app.core.db import transaction
        from app.runs import service

        with transaction() as session:
            run = service.start(
                session,
                self.world.actor,
                project_id=self.world.project_id,
                version_id=self.world.version_id,
                recipe=recipe(self.steps),
                client_request_id=f"run-{len(self.runs)}",
            )
        self.runs.append(run.id)
        return run.id

    def open_runs(self) -> int:
        from app.core.db import reading
        from app.runs.models import END_STATES, Run

        with reading() as session:
            return session.scalar(select(func.count()).where(Run.state.not_in(END_STATES))) or 0

    def keep_ahead(self) -> None:
        """Queue runs until as many are open as there shall be."""
        while self.open_runs() < self.ahead:
            self.start_run()

    def wait_ended(self, what: str, timeout_s: float = END_WITHIN_S) -> float:
        """Wait until no run is open; seconds waited."""
        began = time.monotonic()
        while self.open_runs():
            if time.monotonic() - began > timeout_s:
                print(f"gave up after {timeout_s:.0f} s waiting for {what}")
                break
            time.sleep(0.25)
        return time.monotonic() - began

    def stalled(self) -> dict[str, int]:
        """By device: how many attempts in a row its run has had without a checkpoint."""
        from app.core.db import reading
        from app.runs.models import Attempt, Run

        with reading() as session:
            query = select(Attempt.device, Run.stalled_attempts).join(Run, Run.id == Attempt.run_id)
            return {
                row.device: row.stalled_attempts for row in session.execute(query.where(Attempt.ended_at.is_(None)))
            }

    def is_between(self, device: str) -> bool:
        """Whether the device's run has recorded steps after its newest checkpoint: what a safety is there for."""
        from app.core.db import reading
        from app.runs.models import Attempt, Checkpoint, Run

        newest = select(func.max(Checkpoint.step)).where(Checkpoint.run_id == Run.id, Checkpoint.state == "kept")
        query = (
            select(Run.step - newest.scalar_subquery())
            .join(Attempt, Run.id == Attempt.run_id)
            .where(Attempt.device == device, Attempt.ended_at.is_(None))
        )
        with reading() as session:
            return (session.scalar(query) or 0) > 0

    def one_event(self, planted: str | None = None) -> None:
        """Choose a victim and do it to it; after a freeze, let it go on. With a planted defect: what shows it."""
        while True:
            if planted:
                victim, number, _ = PLANTED[planted]
            else:
                victim, number, _ = self.chance.choices(EVENTS, [event[2] for event in EVENTS])[0]
            device = self.chance.choice("01")
            if victim in ("trainer", "worker", "worker and trainer") and self.stalled().get(device, 0) > MAX_STALLED:
                time.sleep(0.5)
                continue
            worker = self.stack.parts[f"worker {device}"]
            parent = worker.pid
            trainers = [p for p in self.stack.trainers().values() if parent and p.ppid() == parent]
            if ("trainer" in victim and not trainers) or (planted and not self.is_between(device)):
                time.sleep(0.2)
                self.keep_ahead()  # the run that was to be struck may have ended before its moment came
                continue
            break
        # Somebody else takes a run some time after its lease ended.
        frozen_s = self.chance.uniform(0.3, 2 * LEASE_S) if not planted else self.chance.uniform(3, 5) * LEASE_S
        if victim == "trainer":
            targets = trainers
        elif victim == "worker":
            targets = [worker]
        elif victim == "worker and trainer":
            targets = [*trainers, worker]
        else:
            targets = [self.stack.parts[victim]]
        pids = [getattr(target, "pid", None) for target in targets]
        with (self.home / "events.log").open("a") as log:
            log.write(f"{time.strftime('%X', time.gmtime())} {victim} {number.name} {device} {pids} {self.stalled()}\n")
        for target in targets:
            _send(target, number)
        if number == signal.SIGSTOP:
            time.sleep(frozen_s)
            for target in targets:
                _send(target, signal.SIGCONT)
        self.counts[victim, number.name] += 1
        if victim == "web":
            self.longest_away_s = max(self.longest_away_s, self.web_back())

    def web_back(self) -> float:
        """Seconds until the web answers again."""
        began = time.monotonic()
        transport = httpx.HTTPTransport(uds=str(self.stack.web_socket))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=2) as client:
            while time.monotonic() - began < 60:
                try:
                    if client.get("/health").status_code < 500:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
        return time.monotonic() - began


def _send(target: object, number: int) -> None:
    send = getattr(target, "send", None) or target.send_signal  # type: ignore[attr-defined]
    try:
        send(number)
    except Exception as error:  # it died in this very moment, which is an event too
        print(f"  signal {number} came too late: {error}")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="20 events")
    parser.add_argument("--steps", type=int, default=900, help="length of a run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=list(PLANTED), help="take a safety out; ends with 1 when its count shows it")
    parser.add_argument("--keep", action="store_true", help="keep the home and its logs")
    arguments = parser.parse_args()
    events = 20 if arguments.quick else arguments.events
    home = Path(tempfile.mkdtemp(prefix="gptb-kill-"))
    for name in [name for name in os.environ if name.startswith("GPT_BUILDER_")]:
        del os.environ[name]
    os.environ |= {"GPT_BUILDER_HOME": str(home), "PYTHONPATH": str(ROOT), **SETTINGS}

    from app.core import migrations
    from benchmarks.killing import oracle

    migrations.upgrade()
    worker = [sys.executable, "-m", "worker", "--queue", "train"]
    if arguments.plant:
        worker = [sys.executable, "-m", "benchmarks.killing.plant", arguments.plant, "--queue", "train"]
    # With one run at a time the other worker is free to take it from one that is frozen.
    ahead = 1 if arguments.plant in ("no-lock", "no-fence") else AHEAD
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    loop = Loop(home, arguments.steps, arguments.seed, worker, ahead)
    try:
        reference = loop.start_run()
        alone_s = loop.wait_ended("the undisturbed run")
        print(f"undisturbed run: {alone_s:.0f} s, {alone_s / LEASE_S:.0f} leases of {LEASE_S:.0f} s")
        print(f"{'event':>6} {'minute':>7} {'runs':>5} {'open':>5}", flush=True)
        for number in range(1, events + 1):
            loop.keep_ahead()
            time.sleep(loop.chance.uniform(0.3, 9))
            loop.one_event(arguments.plant)
            if number % 10 == 0:
                minute = (time.monotonic() - began) / 60
                print(f"{number:>6} {minute:>7.1f} {len(loop.runs):>5} {loop.open_runs():>5}", flush=True)
        # Without its safety a run may never end.
        loop.wait_ended("the last runs", 60 if arguments.plant else END_WITHIN_S)
    finally:
        time.sleep(1)
        loop.sampler.stop()
        loop.stack.stop()
    found = report(loop, oracle, reference, events, (time.monotonic() - began) / 60, arguments.keep)
    if arguments.plant:
        wanted = PLANTED[arguments.plant][2]
        print(f"{arguments.plant}: {'seen' if found[wanted] else 'NOT SEEN'} in {wanted}")
        return int(bool(found[wanted]))
    return int(any(found.values()))


def report(loop: Loop, oracle, reference: str, events: int, minutes: float, keep: bool) -> dict[str, int]:
    """Print what was done, and print and return what was found."""
    from app.core.db import reading
    from app.runs.models import Attempt
    from app.runs.reconcile import tidy

    tidy()  # what the housekeeper does every minute
    seen = oracle.seen_by_triggers(loop.home / "gpt-builder.db")
    weights, curves = oracle.unequal(reference)
    found = {
        "lost runs": oracle.lost(),
        "doubled or missing metric rows": seen["doubled"] + curves,
        "overlapping trainers": loop.sampler.overlaps(),
        "stale commits": seen["stale"],
        "orphan files": oracle.orphan_files(loop.home),
        "orphan processes": loop.stack.left(),
        "unequal weights": weights,
    }
    with reading() as session:
        attempts = session.scalar(select(func.count()).select_from(Attempt)) or 0
    print(f"\n{'what was done':<32} {'times':>6}")
    for (victim, number), count in sorted(loop.counts.items()):
        print(f"{victim + ', ' + number:<32} {count:>6}")
    print(f"\n{'what must not be':<32} {'found':>6}")
    for name, count in found.items():
        print(f"{name:<32} {count:>6}")
    print(
        f"\nruns {len(loop.runs)}, attempts {attempts}, samples of the process table {loop.sampler.samples}, ", end=""
    )
    print(f"web away at most {loop.longest_away_s:.1f} s")
    if keep or any(found.values()):
        print(f"kept for a look: {loop.home}")
    else:
        shutil.rmtree(loop.home, ignore_errors=True)
    figures = ", ".join(f"{name} {count}" for name, count in found.items())
    print(f"kill loop: {events} events, {len(loop.runs)} runs, {minutes:.0f} min: {figures}")
    return found


if __name__ == "__main__":
    sys.exit(main())
