"""Claim and lease on both databases: one owner, every workspace its turn, and no write after the fence has moved."""

import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from app.core import config
from app.core.db import new_id, reading, transaction
from app.core.work import LostLease
from app.runs import reconcile, service
from app.runs.claim import RunLease, claim
from app.runs.models import Attempt, Run
from app.runs.reconcile import Reconciler, release
from tests.factories import World, a_recipe, a_world


def start(world: World, count: int = 1, **recipe: object) -> list[str]:
    with transaction() as session:
        return [
            service.start(
                session,
                world.actor,
                project_id=world.project_id,
                version_id=world.version_id,
                recipe=a_recipe(**recipe),
                client_request_id=new_id(),
            ).id
            for _ in range(count)
        ]


def a_world_of(name: str) -> World:
    with transaction() as session:
        return a_world(session, name)


def test_twenty_claimers_one_run(any_database: str) -> None:
    (run_id,) = start(a_world_of("Ada"))
    gate, won = threading.Barrier(20), []

    def one(number: int) -> None:
        gate.wait()
        claimed = claim(node="here", device=str(number))
        if claimed:
            won.append(claimed)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.run_id for one in won] == [run_id]
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Attempt)) == 1
        assert session.get_one(Run, run_id).fence == 1


def test_one_device_trains_one_run(any_database: str) -> None:
    start(a_world_of("Ada"), 2)
    assert claim(node="here", device="0")
    assert claim(node="here", device="0") is None
    assert claim(node="there", device="0")


def test_the_database_itself_refuses_a_second_open_attempt(any_database: str) -> None:
    (run_id,) = start(a_world_of("Ada"))
    assert claim(node="here", device="0")
    with pytest.raises(IntegrityError), transaction() as session:
        session.add(Attempt(run_id=run_id, fence=9, node="there", device="1"))


def test_a_flood_of_one_workspace_does_not_hold_up_the_others(
    any_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (a_world_of(name) for name in ("Flood", "Bob", "Cleo"))
    start(first, 30)
    start(second, 3)
    start(third, 1)
    order = []
    for device in range(6):
        claimed = claim(node="here", device=str(device))
        assert claimed
        with reading() as session:
            order.append(session.get_one(Run, claimed.run_id).workspace_id)
    names = {first.workspace_id: 1, second.workspace_id: 2, third.workspace_id: 3}
    assert [names[one] for one in order] == [1, 2, 3, 1, 2, 1]


def test_a_workspace_has_a_cap(any_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_RUNS_PER_WORKSPACE", "2")
    config.get_settings.cache_clear()
    start(a_world_of("Ada"), 5)
    got = Counter(claim(node="here", device=str(i)) is not None for i in range(5))
    assert got == {True: 2, False: 3}


def test_nothing_is_written_after_the_fence_has_moved(any_database: str) -> None:
    (run_id,) = start(a_world_of("Ada"))
    old = claim(node="here", device="0")
    assert old
    lease = RunLease(old)
    with lease.write(phase="mine"):
        pass
    with transaction() as session:
        release(session, run_id, old.fence, exit_kind="lease_expired")
    with pytest.raises(LostLease), lease.write(phase="stale"):
        pytest.fail("a stale owner got a transaction")
    new = claim(node="there", device="0")
    assert new
    assert new.fence > old.fence
    with pytest.raises(LostLease), lease.write(phase="stale"):
        pytest.fail("a stale owner got a transaction")
    with RunLease(new).write(phase="new owner"):
        pass
    with reading() as session:
        assert session.get_one(Run, run_id).phase == "new owner"


def test_a_lease_ends_only_after_it_was_watched_standing_still(
    any_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(reconcile, "time", SimpleNamespace(monotonic=lambda: watch.now))
    ttl = config.get_settings().lease_ttl_s
    (run_id,) = start(a_world_of("Ada"))
    claimed = claim(node="here", device="0")
    assert claimed
    watch.now += 2 * ttl  # nobody watched: whatever the clock says, it counts for nothing
    reconciler = Reconciler()
    assert reconciler.release_dead() == 0
    watch.now += 0.7 * ttl
    with RunLease(claimed).write():
        pass
    assert reconciler.release_dead() == 0
    watch.now += 0.7 * ttl
    assert reconciler.release_dead() == 0
    watch.now += 0.4 * ttl
    assert reconciler.release_dead() == 1
    with reading() as session:
        run = session.get_one(Run, run_id)
        assert (run.state, run.fence, run.attempt_id) == ("queued", claimed.fence + 1, None)
        assert session.scalars(select(Attempt.exit_kind)).all() == ["lease_expired"]


def test_a_run_that_kills_every_machine_is_given_up(any_database: str) -> None:
    (run_id,) = start(a_world_of("Ada"))
    for _ in range(3):
        claimed = claim(node="here", device="0")
        assert claimed
        with transaction() as session:
            release(session, run_id, claimed.fence, exit_kind="lease_expired")
    assert claim(node="here", device="0") is None
    with reading() as session:
        run = session.get_one(Run, run_id)
        assert (run.state, run.reason) == ("failed", "crash_loop")
        assert "given up" in run.sentence


def test_a_run_of_two_devices_holds_both(any_database: str) -> None:
    world = a_world_of("Ada")
    (both,), (anywhere,) = start(world, devices=["0", "1"]), start(world)
    asked: list[list[str]] = []

    def hold(devices: object) -> bool:
        asked.append(list(devices))  # type: ignore[call-overload]
        return len(asked) > 1

    # Device 1 is still held by somebody else: the run waits for it, and holds up what comes after it on device 0.
    assert claim(node="here", device="0", hold=hold) is None
    claimed = claim(node="here", device="0", hold=hold)
    assert claimed is not None
    assert (claimed.run_id, asked) == (both, [["1"], ["1"]])
    assert claim(node="here", device="1") is None
    with reading() as session:
        assert session.scalars(select(Attempt.devices)).all() == [["0", "1"]]
    # A device that the first run was not given, and another machine's device of the same number, are free.
    other = claim(node="there", device="1")
    assert other is not None
    assert other.run_id == anywhere
    with transaction() as session:
        release(session, both, claimed.fence, exit_kind="worker_lost")
    assert claim(node="here", device="2") is None
    again = claim(node="here", device="1", hold=lambda devices: devices == ["0"])
    assert again is not None
    assert again.run_id == both


def test_machine_time_counts_once_and_over_attempts(any_database: str) -> None:
    (run_id,) = start(a_world_of("Ada"))

    def spent() -> float:
        with reading() as session:
            return session.get_one(Run, run_id).spent_s

    for attempt in (1, 2):
        claimed = claim(node="here", device="0")
        assert claimed
        lease = RunLease(claimed)
        lease._counted_until -= 100
        for _ in range(3):
            with lease.write():
                pass
        assert 100 * attempt <= spent() < 100 * attempt + 50
        with transaction() as session:
            release(session, run_id, claimed.fence, exit_kind="worker_lost")
