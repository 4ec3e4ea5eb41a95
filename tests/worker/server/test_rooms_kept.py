"""A model server that was killed knows the rooms of trainings at its start, before anybody tells it again."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.contracts.room import Room
from app.core.config import get_settings
from app.inference import client
from tests.conftest import ROOT, wait_for
from worker.server.rooms import Rooms


def _room(held_bytes: int, attempt_id: str = "a", lapses_s: float = 60) -> Room:
    return Room(attempt_id=attempt_id, held_bytes=held_bytes, left_s=600, lapses_s=lapses_s)


@contextmanager
def _server(socket: Path) -> Iterator[None]:
    """A real model server that is killed at the end of the block."""
    command = [sys.executable, "-m", "worker.server", "--socket", str(socket), "--threads", "1"]
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for(client.is_ready, "the model server is ready")
        yield
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(15)


def test_a_killed_server_knows_the_rooms_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="gptb-") as folder:
        socket = Path(folder) / "model.sock"
        monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(socket))
        get_settings.cache_clear()
        with _server(socket):
            client.hold_room(_room(10**15))
            client.hold_room(_room(7, attempt_id="over"))
            client.end_room("over")
        with _server(socket):
            found = client.resident()
            assert found is not None
            memory = found["memory"]
            assert memory["training_bytes"] == 10**15
            assert memory["models_bytes"] == 0
            assert 540 < memory["training_left_s"] < 600
            client.end_room("a")
        with _server(socket):
            assert (client.resident() or {})["memory"]["training_bytes"] == 0


def test_a_kept_room_lapses_when_it_would_have(tmp_path: Path) -> None:
    now, wall = [100.0], [5000.0]

    def anew() -> Rooms:
        return Rooms(lambda: now[0], tmp_path / "rooms", lambda: wall[0])

    rooms = anew()
    rooms.hold(_room(100, lapses_s=60))
    now[0], wall[0] = now[0] + 10, wall[0] + 10
    rooms.hold(_room(50, "b", lapses_s=30))
    now[0], wall[0] = 3.0, wall[0] + 15  # the machine was started anew: the first clock begins again
    restarted = anew()
    assert restarted.held_bytes == 150
    assert restarted.free_after_s(150) == pytest.approx(585)
    now[0] += 20
    assert restarted.held_bytes == 100, "the other was told thirty-five seconds before"
    now[0] += 20
    assert restarted.held_bytes == 0
    wall[0] += 40
    assert anew().held_bytes == 0
    wall[0] -= 3600
    assert anew().held_bytes == 0, "from a time to come: the clock was set back"


@pytest.mark.parametrize(
    "found",
    [
        b"",
        b'[{"room": {"attempt_id": "a", "held_by',
        b"\xff\x00",
        b"{}",
        b'[{"room": 7, "told_at": 1}]',
        json.dumps([{"room": _room(9).model_dump(), "told_at": "yesterday"}]).encode(),
        b'[{"room": {"attempt_id": "a", "held_bytes": 9, "left_s": 1, "lapses_s": 60}, "told_at": NaN}]',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_no_rooms_and_is_written_anew(tmp_path: Path, found: bytes) -> None:
    path = tmp_path / "rooms"
    path.write_bytes(found)
    rooms = Rooms(path=path)
    assert rooms.held_bytes == 0
    rooms.hold(_room(9))
    assert Rooms(path=path).held_bytes == 9


def test_rooms_that_cannot_be_written_are_held_all_the_same(tmp_path: Path, caplog: Any) -> None:
    rooms = Rooms(path=tmp_path / "nowhere" / "rooms")
    rooms.hold(_room(9))
    assert rooms.held_bytes == 9
    assert "are not kept" in caplog.text
    rooms.end("a")
    assert rooms.held_bytes == 0
