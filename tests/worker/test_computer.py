"""The computer panel's figures: of this very process, at most every five seconds, never a fault."""

import os
import subprocess
import sys

import psutil

from app.runs import coach
from worker import computer
from worker.computer import Computer


def test_it_sees_this_process_and_its_children() -> None:
    me = psutil.Process()
    with subprocess.Popen([sys.executable, "-c", "a = bytes(range(256)) * 800_000; print(); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        seen = Computer(os.getpid()).look()
        rss = sum(one.memory_info().rss for one in (me, *me.children()))
        child.kill()
    assert seen is not None
    assert 0 <= seen["cpu_share"] <= 1
    assert 0.9 * rss < seen["memory_bytes"] < 1.1 * rss
    assert 0 < seen["free_bytes"] < psutil.virtual_memory().total


def test_it_looks_seldom_and_never_fails() -> None:
    one = Computer(os.getpid())
    assert one.look() is not None
    assert one.look() is None
    assert Computer(2**22 + 5).look() is None


def test_a_card_that_idles_for_minutes_is_named(tmp_path, monkeypatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '12, 2048, 60.5'\n")
    smi.chmod(0o755)
    monkeypatch.setattr(computer.shutil, "which", lambda name: str(smi))
    clock = iter((100.0, 410.0))
    one = Computer(os.getpid())
    monkeypatch.setattr(computer.time, "monotonic", lambda: next(clock))
    first, later = one.look(), one.look()
    assert first is not None
    assert later is not None
    assert (later["gpu_share"], later["gpu_memory_bytes"], later["gpu_idle_s"]) == (0.12, 2048 * 2**20, 310)
    assert later["energy_j"] >= 60.5 * computer.EVERY_S
    assert coach.starved(first) is None
    found = coach.starved(later)
    assert found is not None
    assert "88%" in found.sentence.replace(" ", "")


def test_only_the_cards_that_a_run_trains_on_are_told(tmp_path, monkeypatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase $* in *--id=1,2*) echo '90, 1024, 50\n70, 1024, 30';; *) echo '5, 9, 9\n90, 9, 9';; esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setattr(computer.shutil, "which", lambda name: str(smi))
    own, first = Computer(os.getpid(), "1,2").look(), Computer(os.getpid()).look()
    assert own is not None
    assert first is not None
    assert (own["gpu_share"], own["gpu_memory_bytes"]) == (0.8, 2048 * 2**20)
    assert own["energy_j"] >= 80 * computer.EVERY_S
    assert first["gpu_share"] == 0.05
