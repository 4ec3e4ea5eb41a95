"""Answers that break off: a maker that died, pieces that were lost, a model server that is away, a page in between."""

import asyncio
import socketserver
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, update

from app.chat import answering
from app.chat.models import ChatMessage
from app.chat.stream import _events, _texts
from app.contracts.conversation import Message
from app.contracts.generation import Sampling, TokenEvent
from app.contracts.recipe import ModelFiles
from app.core import config, events, lives
from app.core.db import get_engine, transaction, utcnow
from app.core.errors import Unavailable
from app.inference.targets import Target
from tests.app.chat.conftest import Scene, answers, ask, finished
from tests.conftest import ROOT, wait_for


def test_an_answer_whose_maker_died_is_told_at_once_and_can_be_tried_again(scene: Scene, home: Path) -> None:
    chat_id = ask(scene)
    (answer,) = finished(chat_id)
    say_its_life = [sys.executable, "-c", "from app.core import lives; print(lives.own())"]
    dead = subprocess.run(say_its_life, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    told: dict[str, bool] = {}
    half = {"state": "streaming", "content": "Half a sen"}
    long_ago = utcnow().replace(year=2020)
    for case, row in {
        "alive": {"saved_at": utcnow(), "maker": lives.own()},
        "elsewhere, silent": {"saved_at": long_ago, "maker": ""},
        "dead": {"saved_at": utcnow(), "maker": dead},
    }.items():
        with transaction() as session:
            session.execute(update(ChatMessage).where(ChatMessage.id == answer.id).values(**half, **row))
        page = scene.client.get(f"/chats/{chat_id}").text
        assert "Half a sen" in page
        told[case] = "The answer was interrupted" in page
    assert told == {"alive": False, "elsewhere, silent": True, "dead": True}
    assert scene.client.post(f"/chats/messages/{answer.id}/again").status_code == 303
    assert finished(chat_id, 2)[-1].state == "done"


def test_an_answer_that_breaks_off_keeps_all_that_was_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(socketserver.StreamRequestHandler):
        """A model server that dies after two words."""

        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.wfile.write(b'{"text": "Two "}\n{"text": "words"}\n')

    place = Path(tempfile.mkdtemp(prefix="gptb-")) / "model.sock"
    with socketserver.ThreadingUnixStreamServer(str(place), Breaking) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(place))
        config.get_settings.cache_clear()
        (answer,) = finished(ask(scene))
        server.shutdown()
    assert (answer.state, answer.content) == ("failed", "Two words")
    assert "out of reach" in answer.error


def test_pieces_that_redis_lost_are_read_from_the_database(scene: Scene) -> None:
    (answer,) = finished(ask(scene))
    with transaction() as session:
        row = {"state": "streaming", "content": "One two three four", "maker": lives.own()}
        session.execute(update(ChatMessage).where(ChatMessage.id == answer.id).values(**row))
    redis = events._client()
    assert redis is not None
    redis.delete(f"s:chat:{answer.id}")
    for piece in ({"text": "One ", "at": 0}, {"text": "four", "at": 14}):
        events.publish(f"chat:{answer.id}", "text", piece)

    async def first_two() -> list[object]:
        texts = _texts(scene.person.actor, answer.id)
        return [await anext(texts), await anext(texts)]

    assert asyncio.run(first_two()) == ["One ", "One two three four"]


def test_a_page_is_told_when_its_conversation_is_deleted_under_an_answer(scene: Scene) -> None:
    chat_id = ask(scene)
    (answer,) = finished(chat_id)
    scene.client.post(f"/chats/{chat_id}/delete")

    async def told() -> str:
        return b"".join([event async for event in _events(scene.person.actor, answer.id)]).decode()

    last = asyncio.run(told())
    assert "This conversation is no longer here." in last
    assert last.endswith("event: done\ndata: done\n\n")


def test_without_a_model_server_the_page_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", "/nowhere/model.sock")
    monkeypatch.setattr(answering, "PATIENCE_S", 0.0)
    config.get_settings.cache_clear()
    chat_id = ask(scene)
    (answer,) = finished(chat_id)
    assert answer.state == "failed"
    assert "starting or out of reach" in scene.client.get(f"/chats/{chat_id}").text


def test_a_model_server_has_three_minutes_to_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a training on two cores it needed more than forty-five seconds. The clock of this test is quick."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + 20 * seconds))
    monkeypatch.setattr(answering, "time", clock)
    files = ModelFiles(base_dir=str(home))
    order = answering.Order(
        "m", Target("model:m", "", files, "", ""), [Message(role="user", content="Is it?")], Sampling()
    )
    told: list[TokenEvent] = []
    with pytest.raises(Unavailable):
        told.extend(answering._events(order, answering._Said("m")))
    assert {event.waiting.why for event in told if event.waiting} == {"server"}
    assert 180 < now[0] < 300


def test_an_answer_waits_for_a_model_server_that_starts_again(
    scene: Scene, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(tempfile.mkdtemp(prefix="gptb-")) / "model.sock"
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(place))
    config.get_settings.cache_clear()
    chat_id = ask(scene)
    stopped = ask(scene)
    scene.client.post(f"/chats/messages/{answers(stopped)[0].id}/stop")
    assert finished(stopped)[0].state == "stopped", "whoever waits may stop waiting"
    assert answers(chat_id)[0].state == "streaming"
    place.symlink_to(socket)
    (answer,) = finished(chat_id)
    assert (answer.state, answer.statistics["completion_tokens"]) == ("done", 24)


def test_an_answer_is_kept_while_its_database_cannot_be_written(
    scene: Scene, socket: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Path(tempfile.mkdtemp(prefix="gptb-")) / "model.sock"
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(place))
    monkeypatch.setattr(answering, "SAVE_EVERY_S", 0.001)  # the tiny model answers in less than a usual pause
    config.get_settings.cache_clear()
    chat_id = ask(scene)
    state = {"query_only": "ON"}

    def limit(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA query_only={state['query_only']}")

    engine = get_engine()
    event.listen(engine, "checkout", limit)
    try:
        place.symlink_to(socket)
        wait_for(lambda: "the end of an answer is not saved yet" in caplog.text, "it tried to save")
        state["query_only"] = "OFF"
        (answer,) = finished(chat_id)
    finally:
        state["query_only"] = "OFF"
        engine.connect().close()
        event.remove(engine, "checkout", limit)
    assert "an answer goes on unsaved" in caplog.text
    assert (answer.state, answer.statistics["completion_tokens"]) == ("done", 24)
