"""Who begins when: workspaces take turns, memory bounds who speaks together, and one prompt is read at a time."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling, TokenEvent
from app.contracts.recipe import ModelFiles
from tests.worker.tiny import make_model
from worker.engine.generate import Loaded, load
from worker.engine.slots import Slots
from worker.server import turns as turns_module
from worker.server.serving import _settling
from worker.server.turns import Answer, Turns


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(ModelFiles(base_dir=str(make_model(tmp_path_factory.mktemp("model"), context_length=512))))


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns()
    yield made
    made.stop()


def order_of_ends(turns: Turns, loaded: Loaded, asked: list[tuple[str, str]]) -> list[str]:
    """Names in the order in which their answers end; `asked` are (workspace, name), all added before any begins."""

    async def run() -> list[str]:
        ended: list[str] = []
        gate = threading.Event()
        turns.call(lambda: gate.wait(30) and None)
        answers = {name: Answer(_request(workspace), loaded, asyncio.get_running_loop()) for workspace, name in asked}

        async def follow(name: str, answer: Answer) -> None:
            while (event := await answer.events.get()).finish_reason is None:
                pass
            assert event.finish_reason != "error"
            ended.append(name)

        for answer in answers.values():
            turns.add(answer)
        gate.set()
        await asyncio.gather(*(follow(name, answer) for name, answer in answers.items()))
        return ended

    return asyncio.run(run())


def _request(workspace_id: str) -> GenerationRequest:
    return GenerationRequest(
        model_ref="m",
        workspace_id=workspace_id,
        files=ModelFiles(base_dir="unused"),
        messages=[Message(role="user", content="How?")],
        sampling=Sampling(temperature=1.5, seed=1, max_tokens=8),
    )


def test_a_workspace_that_asks_much_holds_up_nobody(
    turns: Turns, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "MAX_ACTIVE", 1)
    asked = [*(("many", f"a{number}") for number in range(5)), ("few", "b")]
    assert order_of_ends(turns, loaded, asked) == ["a0", "b", "a1", "a2", "a3", "a4"]


def test_a_model_that_cannot_be_laid_out_ends_its_own_answer_and_no_other(turns: Turns, loaded: Loaded) -> None:
    odd: Any = SimpleNamespace(config=SimpleNamespace(model_type="llama"))

    async def run() -> list[str | None]:
        answers = [
            Answer(_request("one"), one, asyncio.get_running_loop()) for one in (replace(loaded, model=odd), loaded)
        ]
        for answer in answers:
            turns.add(answer)
        return [await asyncio.wait_for(_last(answer), 30) for answer in answers]

    reasons = asyncio.run(run())
    assert reasons[0] == "error"
    assert reasons[1] in ("stop", "length")


async def _last(answer: Answer) -> str | None:
    while (event := await answer.events.get()).finish_reason is None:
        pass
    return event.finish_reason


def test_want_of_memory_in_the_middle_ends_everybody_in_it_also_who_had_just_left(
    turns: Turns, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = iter((None, MemoryError("no room")))

    def keep(_slots: Slots, _answer: object, _place: int) -> None:
        if (error := next(kept, None)) is not None:
            raise error

    monkeypatch.setattr(Slots, "_keep", keep)

    async def run() -> list[str | None]:
        gate = threading.Event()
        turns.call(lambda: gate.wait(30) and None)
        answers = [Answer(_request(name), loaded, asyncio.get_running_loop()) for name in ("one", "two")]
        for answer in answers:
            turns.add(answer)
        gate.set()
        return [await asyncio.wait_for(_last(answer), 30) for answer in answers]

    assert "error" in asyncio.run(run())
    assert turns.counts()["active"] == 0


def test_a_panic_on_the_model_thread_is_told_to_who_asked(turns: Turns) -> None:
    class Panic(BaseException):
        """What a library written in Rust raises."""

    def panic() -> None:
        raise Panic

    async def run() -> int:
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        turns.call(_settling(loop, first, panic))
        turns.call(_settling(loop, second, lambda: 7))
        with pytest.raises(Panic):
            await first
        return await asyncio.wait_for(second, 30)

    assert asyncio.run(run()) == 7


def test_a_reader_who_takes_nothing_is_let_go(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(turns_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(turns_module, "PACE_S", 0)

    async def run() -> None:
        nonlocal now
        answer = Answer(_request("one"), loaded, asyncio.get_running_loop())
        for _ in range(turns_module.BUFFER_EVENTS + 200):
            answer.tell(TokenEvent(text="x"))
            await asyncio.sleep(0)
        assert answer.events.qsize() == turns_module.BUFFER_EVENTS, "what comes later waits in one piece"
        assert answer.is_wanted
        now += turns_module.SLOW_READER_S + 1
        assert not answer.is_wanted

    asyncio.run(run())


def test_words_that_come_fast_go_out_together(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(turns_module, "time", SimpleNamespace(monotonic=lambda: now))

    async def run() -> None:
        nonlocal now
        answer = Answer(_request("one"), loaded, asyncio.get_running_loop())
        for text in "abc":
            answer.tell(TokenEvent(text=text))
        now += 2 * turns_module.PACE_S
        answer.tell(TokenEvent(text="d"))
        answer.tell(TokenEvent(text="e"))
        answer.tell(TokenEvent(text="f", finish_reason="length"))
        await asyncio.sleep(0)
        told = [answer.events.get_nowait() for _ in range(answer.events.qsize())]
        assert [event.text for event in told] == ["a", "bcd", "ef"]
        assert [event.finish_reason for event in told] == [None, None, "length"]

    asyncio.run(run())


def test_who_would_not_fit_into_memory_waits(turns: Turns, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    class Watched(Slots):
        def step(self, most_read: int | None = None):  # type: ignore[no-untyped-def]
            nonlocal most
            most = max(most, len(self.answers))
            return super().step(most_read)

    longest = 40 * Slots(loaded).token_bytes  # more than one of these answers may become, less than two
    monkeypatch.setattr(turns_module, "Slots", partial(Watched, cache_bytes=longest))
    names = ["first", "second", "third"]
    assert order_of_ends(turns, loaded, [("w", name) for name in names]) == names
    assert most == 1


def test_between_two_calls_everybody_speaks(turns: Turns, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, seen = 0, []

    class Counted(Slots):
        def step(self, most: int | None = None):  # type: ignore[no-untyped-def]
            nonlocal steps
            steps += 1
            return super().step(most)

    monkeypatch.setattr(turns_module, "Slots", Counted)
    gate = threading.Event()
    turns.call(lambda: gate.wait(30) and None)
    for _ in range(4):
        turns.call(lambda: seen.append(steps))

    async def run() -> None:
        answer = Answer(_request("w"), loaded, asyncio.get_running_loop())
        turns.add(answer)
        gate.set()
        while (await answer.events.get()).finish_reason is None:
            pass

    asyncio.run(run())
    assert len(set(seen)) == 4, "a step of the answer between any two calls"
