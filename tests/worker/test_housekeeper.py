"""The housekeeper: every chore gets its turn, a broken one stops nobody, the follower only watches."""

import importlib
import threading
import time

from app.core.leader import Leader
from app.core.queue import QUEUES
from app.runs import service as runs
from worker.celery_app import celery_app
from worker.housekeeper import Chore, chores, keep_house
from worker.long_work import DEVICE_WORK, LONG_WORK


def test_a_broken_chore_keeps_no_other_from_its_turn(database: object) -> None:
    done, stop = [], threading.Event()

    def breaks() -> None:
        raise RuntimeError("this chore is broken")

    def works() -> None:
        done.append(time.monotonic())
        if len(done) == 3:
            stop.set()

    keep_house(stop, [Chore("broken", 0, breaks), Chore("works", 0, works)], Leader("house"))
    assert len(done) == 3


def test_a_follower_does_no_chore_and_takes_over_when_the_leader_leaves(database: object) -> None:
    leader, stop, turns = Leader("house", holder="other:1:1.00"), threading.Event(), []
    assert leader.hold()
    chore = Chore("count", 0, lambda: (turns.append(1), stop.set()))
    thread = threading.Thread(target=keep_house, args=(stop, [chore], Leader("house", ttl_s=60)))
    thread.start()
    time.sleep(0.2)
    assert turns == []
    leader.release()
    thread.join(10)
    assert turns == [1]
    assert leader.hold(), "who stops gives the lease up"


def test_every_wake_up_has_a_worker_that_knows_it() -> None:
    for name in celery_app.conf.include:
        importlib.import_module(name)
    named = {task for _, task in (*LONG_WORK, *DEVICE_WORK)} | {runs.TASK}
    assert named <= set(celery_app.tasks)
    assert {QUEUES[task.split(".")[0]] for _, task in LONG_WORK} == {"data"}
    assert {QUEUES[task.split(".")[0]] for _, task in DEVICE_WORK} == {"train"}


def test_every_real_chore_runs_on_an_empty_database(database: object) -> None:
    for chore in chores():
        chore.do()
