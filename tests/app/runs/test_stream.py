"""The live stream on a real Redis: nothing missed, nothing shown twice by different steps, one rendering for all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from app.core import events
from app.core.db import transaction
from app.runs import stream
from app.runs.fragments import FRAGMENTS
from app.runs.models import MetricPoint, Run
from app.runs.stream import Hub, Watcher
from tests.factories import a_recipe, a_world


@pytest.fixture
def run_id(database) -> str:
    """A training run with 300 recorded steps."""
    with transaction() as session:
        world = a_world(session)
        run = Run(
            project_id=world.project_id, workspace_id=world.workspace_id, number=1, name="<b>Calm</b>",
            version_id=world.version_id, recipe=a_recipe().model_dump(mode="json"), state="running", step=300,
            total_steps=1000,
        )  # fmt: skip
        session.add(run)
        session.flush()
        session.add_all(MetricPoint(run_id=run.id, name="loss", step=s, value=3 - s / 300) for s in range(1, 301))
        return run.id


def points(step: int) -> dict[str, Any]:
    return {"step": [step], "loss": [2.0], "lr": [1e-3], "grad": [1.0], "tps": [100.0]}


class Page:
    """What one watcher received: metrics by id, fragments, and whether it was told the end."""

    def __init__(self, hub: Hub, run_id: str, after: str, **who: Any) -> None:
        watcher = Watcher(who.get("may_edit", True), frozenset(who.get("skip", ())))
        self.messages: list[bytes] = []
        self.source: AsyncIterator[bytes] = hub.watch(run_id, after, watcher)
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self.source:
            self.messages.append(message)

    @property
    def steps(self) -> list[int]:
        found: list[int] = []
        for message in self.messages:
            if b"event: metrics" in message:
                data = message.split(b"data: ", 1)[1].split(b"\n", 1)[0]
                found += orjson.loads(data)["step"]
        return found

    @property
    def text(self) -> str:
        return b"".join(self.messages).decode()

    async def close(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def until(condition: Any, what: str) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.025)
    pytest.fail(f"still not: {what}")


def end(run_id: str) -> None:
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.state, run.reason, run.sentence = "failed", "diverged", "It diverged. Step 240 is kept."
    events.publish(f"run:{run_id}", "state", {"state": "failed", "is_over": True})


def test_a_page_gets_what_it_missed_then_everything_and_then_the_end(run_id, broker):
    first = events.publish(f"run:{run_id}", "metrics", points(301))
    events.publish(f"run:{run_id}", "metrics", points(302))

    async def story() -> None:
        hub = Hub()
        page = Page(hub, run_id, str(first))
        await until(lambda: 302 in page.steps, "the missed point")
        for step in range(303, 320):
            events.publish(f"run:{run_id}", "metrics", points(step))
        await until(lambda: 319 in page.steps, "the live points")
        assert page.steps[0] == 302, "301 was in the snapshot already"
        assert sorted(set(page.steps)) == list(range(302, 320))
        await until(lambda: 'hx-target="#coach"' in page.text, "the coach's fragment")
        assert "&lt;b&gt;Calm&lt;/b&gt;" in page.text
        assert "<b>Calm</b>" not in page.text
        end(run_id)
        await asyncio.wait_for(page.task, 60)
        assert "Stopped to protect your work" in page.text
        assert page.messages[-1].startswith(b"event: done")
        assert hub.channels == {}
        assert hub._tasks == []

    asyncio.run(story())


def test_one_rendering_for_any_number_of_watchers_and_none_without_change(run_id, broker, monkeypatch):
    drawn: list[set[bool]] = []
    real = stream._rendered
    monkeypatch.setattr(stream, "_rendered", lambda one, variants: drawn.append(set(variants)) or real(one, variants))
    monkeypatch.setattr(stream, "FRAGMENTS_EVERY_S", 0.1)
    monkeypatch.setattr(stream, "FRAGMENTS_SHARE", 1)

    async def story() -> None:
        hub = Hub()
        pages = [Page(hub, run_id, "0-0", may_edit=i % 2 == 0, skip=("samples",)) for i in range(40)]
        sent = [f'hx-target="#{root}"' for name, root in FRAGMENTS.items() if name != "samples"]
        await until(lambda: all(part in page.text for page in pages for part in sent), "everybody's fragments")
        assert drawn == [{True, False}]
        assert "Stop and keep best" in pages[0].text
        assert "Stop and keep best" not in pages[1].text, "readers get no buttons"
        assert not any("#run-samples" in page.text for page in pages)
        size = len(pages[0].messages)
        events.publish(f"run:{run_id}", "log", {"sentence": "nothing new"})
        await until(lambda: len(drawn) == 2, "a second look")
        await asyncio.sleep(0.2)
        assert pages[0].messages[size:] == [], "what did not change is not sent"
        for page in pages:
            await page.close()

    asyncio.run(story())


def test_without_redis_the_database_is_asked(run_id, monkeypatch):
    monkeypatch.setattr(stream, "POLL_EVERY_S", 0.1)

    async def story() -> None:
        hub = Hub()
        page = Page(hub, run_id, "0-0")
        await until(lambda: 300 in page.steps, "the recorded points")
        with transaction() as session:
            session.add(MetricPoint(run_id=run_id, name="loss", step=301, value=1.9))
        await until(lambda: 301 in page.steps, "the newest point")
        end(run_id)
        await asyncio.wait_for(page.task, 60)
        assert page.messages[-1].startswith(b"event: done")

    asyncio.run(story())


def test_a_page_that_cannot_keep_up_is_let_go_and_the_others_stay(run_id):
    channel = stream.Channel(run_id, "0-0")
    slow, quick = Watcher(True, frozenset()), Watcher(True, frozenset())
    channel.watchers |= {slow, quick}
    for number in range(stream._QUEUE + 5):
        channel.send(str(number).encode())
        with contextlib.suppress(asyncio.QueueEmpty):
            quick.queue.get_nowait()
    assert channel.watchers == {quick}
    waiting = [slow.queue.get_nowait() for _ in range(slow.queue.qsize())]
    assert waiting[-1] is None


def test_an_event_cannot_be_forged_by_its_text():
    sent = stream.encoded("a\n\nevent: done\ndata: x\r\nid: 9", event="metrics", entry_id="5-0")
    assert sent.count(b"\n\n") == 1
    assert [line for line in sent.splitlines() if line.startswith((b"event:", b"id:"))] == [
        b"id: 5-0",
        b"event: metrics",
    ]


@pytest.mark.parametrize("asked", ["9" * 40, "99999999999999999-0", "\u0661-\u0662", "0-99999999999999999999"])
def test_a_place_that_cannot_be_leaves_the_other_runs_live(run_id, broker, asked):
    """All runs of a process are read with one command: one place that Redis refuses would silence them all."""
    with transaction() as session:
        first = session.get_one(Run, run_id)
        other = Run(
            project_id=first.project_id, workspace_id=first.workspace_id, number=2, name="Other", state="running",
            version_id=first.version_id, recipe=first.recipe, total_steps=1000,
        )  # fmt: skip
        session.add(other)
        session.flush()
        other_id = other.id
    events.publish(f"run:{run_id}", "metrics", points(301))

    async def story() -> None:
        hub = Hub()
        hostile = Page(hub, run_id, stream._place(run_id, asked))
        page, neighbour = Page(hub, run_id, "0-0"), Page(hub, other_id, "0-0")
        await until(lambda: len(hub.channels) == 2, "both are watched")
        events.publish(f"run:{other_id}", "metrics", points(5))
        events.publish(f"run:{run_id}", "metrics", points(302))
        await until(lambda: 5 in neighbour.steps and 302 in page.steps, "live points")
        assert not hub.polls
        await until(lambda: not any(c.is_rendering for c in hub.channels.values()), "the last rendering has ended")
        for one in (hostile, page, neighbour):
            await one.close()

    asyncio.run(story())
