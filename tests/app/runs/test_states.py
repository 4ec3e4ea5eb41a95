"""The states of a run under every order of events that Hypothesis can think of, on a real database."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from app.contracts.events import CheckpointSaved, Evaluated, Started, Step
from app.core import storage
from app.core.db import new_id, reading, transaction
from app.core.errors import Conflict
from app.core.work import LostLease
from app.runs import service, settling, states
from app.runs.claim import RunLease, claim
from app.runs.models import END_STATES, LIVE_STATES, Attempt, Checkpoint, MetricPoint, Run
from app.runs.outcomes import Facts
from app.runs.reconcile import release
from app.runs.recording import Recorder
from tests.factories import a_recipe, a_world

TOTAL = 50
VERBS: dict[str, Callable[..., Run]] = {
    "cancel": service.request_cancel,
    "pause": service.request_pause,
    "resume": service.resume,
    "stop": service.request_stop_and_keep,
}
# What a page offers in each state that is no end.
ACTIONS = {
    "queued": "cancel",
    "waiting": "resume",
    "paused": "resume",
    "starting": "cancel",
    "running": "pause",
    "pausing": "cancel",
    "finalizing": "cancel",
    "cancelling": "cancel",
}


class Owner:
    """A supervisor as far as the database sees it: a lease, a recorder, and how far its trainer has come."""

    def __init__(self, claimed: states.Claimed) -> None:
        self.lease = RunLease(claimed)
        self.recorder = Recorder(self.lease)
        self.step = 0
        self.is_training = False


class Lives(RuleBasedStateMachine):
    """One run, any number of owners of whom at most one is right."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[Owner] = []
        self.ended_as: str | None = None
        self.fence = 0

    @initialize()
    def submit(self) -> None:
        with transaction() as session:
            self.world = a_world(session)
        self.next_run()

    @precondition(lambda self: self.ended_as)
    @rule()
    def next_run(self) -> None:
        self.owners, self.ended_as, self.fence = [], None, 0
        self.request = new_id()
        self.run_id = self._start()

    def _start(self) -> str:
        with transaction() as session:
            return service.start(
                session,
                self.world.actor,
                project_id=self.world.project_id,
                version_id=self.world.version_id,
                recipe=a_recipe(),
                client_request_id=self.request,
            ).id

    def row(self) -> Run:
        with reading() as session:
            return session.get_one(Run, self.run_id)

    def current(self, owner: Owner) -> bool:
        run, mine = self.row(), owner.lease.claimed
        return run.state in LIVE_STATES and (run.fence, run.attempt_id) == (mine.fence, mine.attempt_id)

    def as_owner(self, owner: Owner, action: Callable[[], Any]) -> None:
        """Do it as `owner`: it must be refused exactly when somebody else owns the run, or nobody does."""
        may = self.current(owner)
        try:
            action()
        except LostLease:
            assert not may
        else:
            assert may

    @rule()
    def submit_again(self) -> None:
        assert self._start() == self.run_id

    @precondition(lambda self: not self.ended_as)
    @rule(device=st.sampled_from("ab"), steps=st.integers(0, 3))
    def claim_and_train(self, device: str, steps: int) -> None:
        was = self.row().state
        claimed = claim(node=self.run_id, device=device)
        if claimed is not None and claimed.run_id != self.run_id:
            pytest.fail("a run of an earlier example was still queued")
        assert (claimed is not None) == (was == "queued")
        if claimed:
            self.owners.append(Owner(claimed))
            for _ in range(steps):
                self.begin_or_step(-1)

    @precondition(lambda self: self.owners)
    @rule(choice=st.integers(0, 99))
    def begin_or_step(self, choice: int) -> None:
        owner = self.owners[choice if choice < 0 else choice % len(self.owners)]
        if not owner.is_training:
            with reading() as session:
                kept = settling.newest_kept(session, self.run_id) or 0
            owner.step, owner.is_training = kept, True
            plan = dict(total_steps=TOTAL, train_rows=8, validation_rows=2, tokens_per_epoch=64)
            rest = dict(supervised_tokens_per_epoch=64, parameters=9, trainable_parameters=9)
            owner.recorder.take(Started(step=kept, device="cpu", precision="fp32", **plan, **rest))
        elif owner.step < TOTAL:
            for _ in range(3):
                owner.step += 1
                values = dict(epoch=1.0, loss=1.0 / owner.step, learning_rate=0.1, grad_norm=1.0)
                counts = dict(tokens=8, supervised_tokens=8, step_s=0.01, memory_bytes=1)
                owner.recorder.take(Step(step=owner.step, **values, **counts))
            owner.recorder.take(Evaluated(step=owner.step, loss=1.0 / owner.step, accuracy=0.5, rows=2, is_best=True))
        self.as_owner(owner, owner.recorder.flush)

    @precondition(lambda self: any(owner.step for owner in self.owners))
    @rule(choice=st.integers(0, 99))
    def checkpoint(self, choice: int) -> None:
        owners = [owner for owner in self.owners if owner.step]
        owner = owners[choice % len(owners)]
        place = f"checkpoints/step-{owner.step:08d}"
        (storage.run_dir(self.run_id) / place).mkdir(parents=True, exist_ok=True)
        saved = CheckpointSaved(step=owner.step, dir=place, manifest_sha256="0" * 64, size_bytes=1)
        owner.recorder.take(saved)
        self.as_owner(owner, owner.recorder.flush)

    @precondition(lambda self: self.owners)
    @rule(choice=st.integers(0, 99))
    def heartbeat(self, choice: int) -> None:
        owner = self.owners[choice % len(self.owners)]

        def beat() -> None:
            with owner.lease.write():
                pass

        self.as_owner(owner, beat)

    @precondition(lambda self: self.owners)
    @rule(choice=st.integers(0, 99), code=st.sampled_from([-9, 1, 65, 70, 75, 76, 77, 78, 79]), drained=st.booleans())
    def trainer_ends(self, choice: int, code: int, drained: bool) -> None:
        owner = self.owners[choice % len(self.owners)]

        def facts(run: Run, kept: int | None) -> Facts:
            return Facts(
                exit_code=code,
                message="",
                want=run.want,
                step=run.step,
                total_steps=TOTAL,
                stalled_attempts=run.stalled_attempts,
                memory_rung=run.plan.get("memory_rung", 0),
                relief="2 rows at a time",
                learning_rate=0.1,
                kept_step=kept,
                is_drained=drained,
            )

        self.as_owner(owner, lambda: settling.settle(owner.lease, facts))

    @precondition(lambda self: self.owners)
    @rule(choice=st.integers(0, 99))
    def finish(self, choice: int) -> None:
        owner = self.owners[choice % len(self.owners)]
        if self.row().state not in ("running", "pausing", "finalizing"):
            return

        def last_commits() -> None:
            with owner.lease.write() as session:
                if session.get_one(Run, self.run_id).state != "finalizing":
                    states.move(session, self.run_id, "finalizing", claimed=owner.lease.claimed)
            with owner.lease.write() as session:
                states.move(session, self.run_id, "succeeded", claimed=owner.lease.claimed)

        self.as_owner(owner, last_commits)

    @precondition(lambda self: self.owners and not self.ended_as)
    @rule()
    def lease_expires(self) -> None:
        run = self.row()
        if run.state in LIVE_STATES:
            with transaction() as session:
                release(session, run.id, run.fence, exit_kind="lease_expired", heartbeat=run.heartbeat)

    @precondition(lambda self: not self.ended_as)
    @rule(verb=st.sampled_from(["cancel", "pause", "pause", "resume", "resume", "resume", "stop", "stop"]))
    def a_person_asks(self, verb: str) -> None:
        was = self.row().state
        try:
            with transaction() as session:
                VERBS[verb](session, self.world.actor, self.run_id)
        except Conflict:
            assert ACTIONS.get(was) != verb

    @precondition(lambda self: self.owners and not self.ended_as)
    @rule()
    def time_passes(self) -> None:
        with transaction() as session:
            session.get_one(Run, self.run_id).next_attempt_at = None

    @invariant()
    def one_live_attempt(self) -> None:
        run = self.row()
        with reading() as session:
            still_open = session.scalars(
                select(Attempt.id).where(Attempt.run_id == run.id, Attempt.ended_at.is_(None))
            ).all()
        assert still_open == ([run.attempt_id] if run.state in LIVE_STATES else [])
        assert (run.attempt_id is not None) == (run.state in LIVE_STATES)

    @invariant()
    def ends_stay_ends(self) -> None:
        run = self.row()
        assert self.ended_as in (None, run.state)
        if run.state in END_STATES:
            self.ended_as = run.state
            assert run.ended_at is not None

    @invariant()
    def fences_only_rise(self) -> None:
        run = self.row()
        assert run.fence >= self.fence
        self.fence = run.fence

    @invariant()
    def the_curve_has_no_holes_and_nothing_twice(self) -> None:
        with reading() as session:
            query = select(MetricPoint.step).where(MetricPoint.run_id == self.run_id, MetricPoint.name == "loss")
            steps = session.scalars(query.order_by(MetricPoint.step)).all()
            run = session.get_one(Run, self.run_id)
            kept = settling.newest_kept(session, self.run_id) or 0
        assert list(steps) == list(range(1, run.step + 1))
        assert kept <= run.step

    @invariant()
    def one_checkpoint_is_the_best(self) -> None:
        with reading() as session:
            run = session.get_one(Run, self.run_id)
            query = select(Checkpoint.step).where(Checkpoint.run_id == self.run_id, Checkpoint.is_best)
            assert session.scalars(query).all() in ([], [run.best_step])

    @invariant()
    def something_can_be_done(self) -> None:
        assert self.row().state in {*ACTIONS, *END_STATES}

    def teardown(self) -> None:
        with transaction() as session:
            run = session.get(Run, getattr(self, "run_id", ""))
            if run is not None and run.state not in END_STATES:
                run.state, run.attempt_id = "cancelled", None
                states.close_attempt(session, run.id, "test")


def test_any_order_of_events_keeps_the_invariants(database: object) -> None:
    examples = int(os.environ.get("HYPOTHESIS_EXAMPLES", "25"))
    Lives.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize="HYPOTHESIS_EXAMPLES" not in os.environ,
        database=None,
    )
    run_state_machine_as_test(Lives, settings=Lives.TestCase.settings)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(states.FROM) == {*ACTIONS, *END_STATES}
    left = {source for sources in states.FROM.values() for source in sources}
    assert left == set(ACTIONS)
