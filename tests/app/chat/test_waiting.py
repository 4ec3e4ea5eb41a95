"""A model that does not fit beside training waits, says so, and answers by itself when the training is over."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

from app.chat import stream
from app.chat.models import ChatMessage
from app.chat.stream import Shown, _events
from app.chat.waiting import Waited
from app.contracts.generation import Waiting
from app.contracts.room import Room
from app.core import events
from app.inference import client
from tests.app.chat.conftest import Scene, answers, ask, finished
from tests.conftest import wait_for


@pytest.fixture
def training(scene: Scene) -> Iterator[None]:
    """A training of another workspace that takes all memory, for about twelve more minutes."""
    client.hold_room(Room(attempt_id="theirs", held_bytes=10**15, left_s=720, lapses_s=600))
    yield
    client.end_room("theirs")


def _waiting(chat_id: str) -> ChatMessage:
    def told() -> ChatMessage | None:
        (answer,) = answers(chat_id)
        return answer if answer.statistics.get("waiting") else None

    return wait_for(told, "the row says what the answer waits for")


async def _first(scene: Scene, message_id: str) -> str:
    stream = _events(scene.person.actor, message_id)
    try:
        return (await anext(stream)).decode()
    finally:
        await stream.aclose()


def test_an_answer_waits_for_the_memory_that_training_holds(scene: Scene, training: None) -> None:
    chat_id = ask(scene)
    answer = _waiting(chat_id)
    page = scene.client.get(f"/chats/{chat_id}").text
    line = re.sub(r"<[^>]*>", " ", page.split(f'id="w-{answer.id}"')[1].split("</p>")[0])
    assert re.search(r"This model needs about [\d.]+ .B\. Training holds the memory until about \d\d:\d\d; ", line)
    assert "nothing is left for answers. The answer begins by itself then." in line
    assert "12 min left" in line
    assert f"/chats/messages/{answer.id}/stop" in page
    assert "tokens used" not in page, "nothing has been read yet"
    assert "Training holds the memory" in asyncio.run(_first(scene, answer.id))
    redis = events._client()
    assert redis is not None
    redis.delete(f"s:chat:{answer.id}")
    client.end_room("theirs")
    (answer,) = finished(chat_id)
    assert answer.state == "done", answer.error
    assert answer.content
    assert "waiting" not in answer.statistics


def test_the_monitor_page_says_what_is_in_memory(scene: Scene) -> None:
    finished(ask(scene))
    client.hold_room(Room(attempt_id="theirs", held_bytes=3 * 10**9, left_s=720, lapses_s=600))
    try:
        page = scene.client.get(f"/projects/{scene.project_id}/monitor").text
    finally:
        client.end_room("theirs")
    told = re.sub(r"<[^>]*>", "", page[page.index("In memory now") :])
    assert re.search(r"Warm and chatty [\d.]+ .B · fp32", told)
    assert "Training holds 3.0 GB of this machine’s memory until about" in told


def test_a_waiting_answer_is_stopped(scene: Scene, training: None) -> None:
    chat_id = ask(scene)
    answer = _waiting(chat_id)
    scene.client.post(f"/chats/messages/{answer.id}/stop")
    assert finished(chat_id)[0].state == "stopped"


def test_a_blind_comparison_tells_no_sizes(scene: Scene, training: None) -> None:
    chat_id = ask(scene, compare=scene.base, blind="on")

    def both() -> bool:
        return all(answer.statistics.get("waiting") for answer in answers(chat_id))

    wait_for(both, "both wait")
    page = scene.client.get(f"/chats/{chat_id}").text
    assert page.count("This model waits for memory. Training holds it until about") == 2
    assert "needs about" not in page


def test_what_it_waits_for_is_shown_at_once_and_read_out_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a training's end moves by a minute with every look at it; nobody wants to hear each."""
    shown = Shown("m")

    def told(**waiting: Any) -> tuple[str, str | None]:
        """What the page shows, and what is put where it is read out; None: nothing is."""
        waited = Waited.of(Waiting(so_far_s=5, **waiting))
        assert waited is not None
        fragment = shown.waiting(waited, is_masked=False)
        targets = {target: text for target, text in re.findall(r'"#(w.)-m"[^>]*>(.*?)</hx-partial>', fragment)}
        return targets.get("ws", ""), targets.get("wr")

    memory = {"why": "memory", "needed_bytes": 10**9, "training_bytes": 10**10}
    first = told(**memory, training_left_s=600)
    assert "until about" in first[0]
    assert first[0] == first[1]
    second = told(**memory, training_left_s=720)
    assert second[0] != first[0]
    assert second[1] is None
    monkeypatch.setattr(stream, "READ_OUT_FOR_S", 0.0)
    assert told(**memory, training_left_s=840)[1] == "", "what was read out goes"
    assert told(why="server")[1] == "The model server is starting."
    assert told(**memory, training_left_s=840)[1], "another kind than before"
    monkeypatch.setattr(stream, "READ_OUT_EVERY_S", 0.0)
    assert told(**memory, training_left_s=960)[1]


def test_nothing_is_said_for_a_second_and_then_in_words() -> None:
    assert Waited.of(Waiting(why="loading", so_far_s=0.9)) is None
    again = Waited.of(Waiting(why="loading", so_far_s=6.2, is_again=True))
    assert again is not None
    assert (again.sentence, again.beside) == (
        "Loading the model again: it was unloaded to make room for training.",
        "6 s",
    )
    turn = Waited.of(Waiting(why="turn", before=3, so_far_s=2))
    assert turn is not None
    assert (turn.sentence, turn.beside) == ("Waiting for its turn: 3 answers are before it.", "")
    others = Waited.of(Waiting(why="memory", needed_bytes=5_200_000_000))
    assert others is not None
    assert others.sentence.startswith("This model needs about 5.2 GB. Other answers hold the memory")
