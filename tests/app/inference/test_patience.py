"""Long work that asks models waits for a server that starts, and for a place at one that is full."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from app.contracts.conversation import Message
from app.contracts.generation import Waiting
from app.contracts.recipe import ModelFiles
from app.contracts.room import Room
from app.core.config import get_settings
from app.core.errors import Invalid, Unavailable
from app.core.work import Cancelled
from app.drafting import asking
from app.evaluations import running
from app.inference import client, patience
from app.inference.patience import Hears, patiently
from app.inference.targets import Target
from tests.conftest import wait_for
from tests.worker.tiny import make_model
from worker.server import serving
from worker.server.api import create_server


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = make_model(tmp_path_factory.mktemp("model"))
    return Target("model:m", "", ModelFiles(base_dir=str(folder)), "", "")


@pytest.fixture
def full_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model server at which nobody may wait for memory, and training has all of it."""
    monkeypatch.setattr(serving, "MOST_WAITING", 0)
    socket = Path(tempfile.mkdtemp(prefix="gptb-")) / "s"
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(socket))
    get_settings.cache_clear()
    server = uvicorn.Server(uvicorn.Config(create_server(), uds=str(socket), log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(client.is_ready, "the model server answers")
    client.hold_room(Room(attempt_id="a", held_bytes=10**15, left_s=None, lapses_s=600))
    yield
    server.should_exit = True
    thread.join()


def _drafted(target: Target, told: Hears) -> str:
    return asking.ask(target, "Where is my card?", lambda: True, told)


def _asked(target: Target, told: Hears) -> str:
    return running._ask(target, [Message(role="user", content="Where is my card?")], 16, told)


@pytest.mark.parametrize("ask", [_drafted, _asked])
def test_drafts_and_evaluations_wait_for_a_place_as_long_as_it_takes(
    full_server: None, target: Target, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Target, Hears], str]
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    heard: list[str] = []

    def told(waiting: Waiting) -> None:
        heard.append(waiting.why)
        if len(heard) == 2:
            client.end_room("a")

    assert ask(target, told)
    assert heard[:2] == ["memory", "memory"]


def test_whoever_waits_for_a_place_may_be_cancelled(full_server: None, target: Target) -> None:
    def told(waiting: Waiting) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        _drafted(target, told)


def test_a_piece_that_the_model_cannot_read_whole_says_what_to_do(full_server: None, target: Target) -> None:
    client.end_room("a")
    with pytest.raises(Invalid, match=r"too long: .* choose a smaller longest piece and draft again"):
        asking.ask(target, "Where is my card? " * 400, lambda: True)


def test_patience_counts_from_what_was_heard_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed after an hour of waiting has its minutes to come back, too."""
    monkeypatch.setattr(patience, "PATIENCE_S", 0.4)
    calls: list[float] = []
    heard: list[str] = []

    def call(hears: Hears) -> str:
        calls.append(time.monotonic())
        if len(calls) == 1:
            for _ in range(5):
                time.sleep(0.1)
                hears(Waiting(why="memory"))
            raise Unavailable
        return "answered"

    assert patiently(call, lambda waiting: heard.append(waiting.why)) == "answered"
    assert heard == ["memory"] * 5 + ["server"]


def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.2)

    def away(_: Hears) -> str:
        raise Unavailable("out of reach")

    with pytest.raises(Unavailable, match="out of reach"):
        patiently(away, lambda waiting: None)
