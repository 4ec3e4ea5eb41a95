"""One housekeeper leads; a dead or frozen one is replaced, and a live one never."""

import os
import platform
import subprocess
import sys
import threading
import time

import psutil

from app.core.leader import Leader
from tests.conftest import wait_for


def test_one_leads_and_hands_over(any_database: str) -> None:
    first, second = Leader("house", holder="a:1:1.00"), Leader("house", holder="b:1:1.00")
    assert first.hold()
    assert not second.hold()
    assert first.hold()
    first.release()
    assert second.hold()
    assert not first.hold()


def test_a_frozen_leader_is_replaced_and_does_not_come_back(any_database: str) -> None:
    first, second = Leader("house", holder="a:1:1.00"), Leader("house", ttl_s=0.3, holder="b:1:1.00")
    assert first.hold()
    assert not second.hold()
    wait_for(second.hold, "the lease passed on")
    assert not first.hold()


def test_a_beating_leader_is_left_alone(any_database: str) -> None:
    first, second = Leader("house", holder="a:1:1.00"), Leader("house", ttl_s=0.3, holder="b:1:1.00")
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert first.hold()
        assert not second.hold()
        time.sleep(0.02)


def test_a_dead_leader_on_this_machine_is_replaced_at_once(any_database: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time()
    dead = Leader("house", holder=f"{platform.node()}:{child.pid}:{started:.2f}")
    assert dead.hold()
    assert not Leader("house").hold()
    child.kill()
    child.wait()
    assert Leader("house").hold()


def test_a_reused_process_number_is_not_mistaken_for_the_leader(any_database: str) -> None:
    assert Leader("house", holder=f"{platform.node()}:{os.getpid()}:1.00").hold()
    assert Leader("house").hold()


def test_many_candidates_at_once_make_one_leader(any_database: str) -> None:
    won = []
    gate = threading.Barrier(8)

    def run(number: int) -> None:
        gate.wait()
        try:
            if Leader("house", holder=f"n{number}:1:1.00").hold():
                won.append(number)
        except Exception as error:
            won.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1, won
