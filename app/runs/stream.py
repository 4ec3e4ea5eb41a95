"""Live events of runs: one reader of Redis a process, one rendering a run, any number of watchers.

Messages replace, never append: fragments carry their place and points their step, so a replay changes nothing.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError

from app.accounts.access import ActorDep
from app.core import events
from app.core.db import reading
from app.runs import curves, fragments, service
from app.runs.models import END_STATES, Run
from app.runs.view import view

log = logging.getLogger(__name__)
router = APIRouter()
POINTS_EVERY_S = 0.25
FRAGMENTS_EVERY_S = 3.0
FRAGMENTS_SHARE = 0.005  # of a core: a slow or busy machine has them more seldom
POLL_EVERY_S = 5.0
HEARTBEAT_S = 15.0
_QUEUE = 64
_PLACE = re.compile(r"[0-9]{1,18}-[0-9]{1,18}", re.ASCII)
_SERIES = ("step", "loss", "lr", "grad", "tps", "val")
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def encoded(data: str, *, event: str = "", entry_id: str = "") -> bytes:
    """One server-sent event. Line breaks in `data` become lines of their own, so nothing in it can forge an event."""
    head = (f"id: {entry_id}\n" if entry_id else "") + (f"event: {event}\n" if event else "")
    return (head + "".join(f"data: {line}\n" for line in data.splitlines()) + "\n").encode()


@dataclass(eq=False)
class Watcher:
    """One open page: what waits to be sent to it. None ends its stream."""

    may_edit: bool
    skip: frozenset[str]
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(_QUEUE))

    def give(self, message: bytes | None) -> bool:
        """Whether there was room; a page that cannot keep up is let go and comes back by itself."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            return False
        return True


@dataclass(eq=False)
class Channel:
    """A run that somebody watches. `position` is the newest event's id that was taken into account."""

    run_id: str
    position: str
    watchers: set[Watcher] = field(default_factory=set)
    points: dict[str, list[Any]] = field(default_factory=dict)
    last_step: int = -1
    is_dirty: bool = True
    is_over: bool = False
    shown: dict[bool, dict[str, str]] = field(default_factory=dict)
    points_due: float = 0.0
    fragments_due: float = 0.0
    is_rendering: bool = False

    def take(self, entry_id: str, event: str, payload: dict[str, Any]) -> None:
        """Remember what an event changes."""
        self.position, self.is_dirty = entry_id, True
        if event == "metrics":
            self.add_points(payload)
        elif event == "restart":
            self.points.clear()
        elif event == "state":
            self.is_over, self.fragments_due = self.is_over or bool(payload.get("is_over")), 0.0

    def add_points(self, payload: dict[str, Any]) -> None:
        """Collect points until the next quarter of a second."""
        for name in _SERIES:
            if payload.get(name):
                self.points.setdefault(name, []).extend(payload[name])
        if payload.get("step"):
            self.last_step = max(self.last_step, payload["step"][-1])

    def send(self, message: bytes | None, *, may_edit: bool | None = None, part: str = "") -> None:
        """Give a message to everybody it is for, and let go of those who are full."""
        for watcher in list(self.watchers):
            if part in watcher.skip or may_edit not in (None, watcher.may_edit):
                continue
            if not watcher.give(message):
                self.watchers.discard(watcher)
                with contextlib.suppress(asyncio.QueueEmpty):
                    watcher.queue.get_nowait()
                watcher.give(None)


class Hub:
    """All watched runs of this process and the two tasks that serve them: reading and sending."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._rendering: set[asyncio.Task[None]] = set()
        self.polls = False

    async def watch(self, run_id: str, after: str, watcher: Watcher) -> AsyncIterator[bytes]:
        """What the page gets: what it missed, then everything as it comes. Ends with the run."""
        channel = self.channels.get(run_id)
        if channel is None:
            channel = self.channels[run_id] = Channel(run_id, after)
        channel.watchers.add(watcher)
        self._run()
        try:
            for message in await self._missed(channel, after, watcher):
                yield message
            while True:
                try:
                    # Not wait_for: in Python 3.11 it may swallow a cancellation that comes together with a message.
                    async with asyncio.timeout(HEARTBEAT_S):
                        message_or_end = await watcher.queue.get()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if message_or_end is None:
                    return
                yield message_or_end
        finally:
            channel.watchers.discard(watcher)
            if not channel.watchers and self.channels.get(run_id) is channel:
                del self.channels[run_id]
            if not self.channels:
                self._stop()

    async def _missed(self, channel: Channel, after: str, watcher: Watcher) -> list[bytes]:
        """Points between the page's snapshot and now, and the fragments as they were sent last."""
        messages: list[bytes] = []
        client = events.async_client()
        if client is not None and not self.polls:
            with contextlib.suppress(RedisError, OSError):
                entries: Any = await client.xrange(f"s:run:{channel.run_id}", f"({after}", "+")
                found = Channel(channel.run_id, after)
                for entry_id, item in entries:
                    if item[b"e"] == b"metrics":
                        found.add_points(orjson.loads(item[b"p"]))
                    found.position = entry_id.decode()
                if found.points:
                    text = orjson.dumps(found.points).decode()
                    messages.append(encoded(text, event="metrics", entry_id=found.position))
        if channel.position != after:
            shown = channel.shown.get(watcher.may_edit, {})
            messages += [encoded(html) for name, html in shown.items() if name not in watcher.skip]
        return messages

    def _run(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._send())]

    def _stop(self) -> None:
        for task in (*self._tasks, *self._rendering):
            task.cancel()
        self._tasks = []
        self._rendering.clear()

    async def _read(self) -> None:
        """One XREAD over every watched run; without Redis the database is asked every five seconds."""
        while True:
            client = events.async_client()
            places: dict[Any, Any] = {f"s:run:{c.run_id}": c.position or "0-0" for c in self.channels.values()}
            try:
                if client is None:
                    raise RedisError("no Redis is configured")
                answer: Any = await client.xread(places, count=500, block=500)
                self.polls = False
            except (RedisError, OSError):
                self.polls = True
                await self._poll()
                await asyncio.sleep(POLL_EVERY_S)
                continue
            for key, entries in answer or ():
                channel = self.channels.get(key.decode().removeprefix("s:run:"))
                for entry_id, item in entries if channel else ():
                    assert channel is not None
                    channel.take(entry_id.decode(), item[b"e"].decode(), orjson.loads(item[b"p"]))

    async def _poll(self) -> None:
        for channel in list(self.channels.values()):
            try:
                found, step, state = await run_in_threadpool(_newer, channel.run_id, channel.last_step)
            except Exception:
                log.warning("a watched run could not be read", exc_info=True)
                continue
            channel.add_points(found)
            channel.last_step, channel.is_dirty = max(channel.last_step, step), True
            channel.is_over = channel.is_over or state in END_STATES

    async def _send(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            now = clock()
            for channel in list(self.channels.values()):
                if channel.points and now >= channel.points_due:
                    text = orjson.dumps(channel.points).decode()
                    channel.points, channel.points_due = {}, now + POINTS_EVERY_S
                    channel.send(encoded(text, event="metrics", entry_id=channel.position))
                if channel.is_dirty and now >= channel.fragments_due and not channel.is_rendering:
                    channel.is_dirty, channel.is_rendering = False, True
                    task = asyncio.create_task(self._refresh(channel))
                    self._rendering.add(task)
                    task.add_done_callback(self._rendering.discard)
            await asyncio.sleep(0.1)

    async def _refresh(self, channel: Channel) -> None:
        """Render the run once for readers and once for editors, and send what changed."""
        cost_s = 0.0
        try:
            variants = {watcher.may_edit for watcher in channel.watchers}
            is_over = channel.is_over
            drawn, is_final, cost_s = await run_in_threadpool(_rendered, channel.run_id, variants)
            for may_edit, parts in drawn.items():
                before = channel.shown.get(may_edit, {})
                for name, html in parts.items():
                    if before.get(name) != html:
                        channel.send(encoded(html, entry_id=channel.position), may_edit=may_edit, part=name)
                channel.shown[may_edit] = parts
            if is_over or is_final:
                channel.send(encoded("over", event="done"))
                channel.send(None)
        except Exception:
            log.warning("a watched run could not be shown", exc_info=True)
            channel.is_dirty = True
        finally:
            channel.is_rendering = False
            pause_s = 0 if channel.is_over else max(FRAGMENTS_EVERY_S, cost_s / FRAGMENTS_SHARE)
            channel.fragments_due = asyncio.get_running_loop().time() + pause_s


def _rendered(run_id: str, variants: set[bool]) -> tuple[dict[bool, dict[str, str]], bool, float]:
    """The fragments for each kind of reader, whether they are the last, and the processor seconds that they took."""
    began_s = time.thread_time()
    with reading() as session:
        run = session.get(Run, run_id)
        if run is None:
            return {}, True, 0.0
        seen = view(session, run)
        drawn = {may_edit: fragments.rendered(seen, may_edit=may_edit) for may_edit in variants}
        return drawn, seen.is_over, time.thread_time() - began_s


def _newer(run_id: str, after: int) -> tuple[dict[str, Any], int, str]:
    """Points recorded after a step, from the database."""
    with reading() as session:
        run = session.get(Run, run_id)
        if run is None:
            return {}, after, "cancelled"
        train = curves.points(session, run_id, "loss", after=after)
        val = curves.points(session, run_id, "validation_loss", after=after)
        found = {"step": [s for s, _ in train], "loss": [v for _, v in train], "val": [[s, v] for s, v in val]}
        return found, run.step, run.state


hub = Hub()


def _place(run_id: str, asked: str) -> str:
    """Where to begin: the asked place if it exists. All watchers of a run share one reader, and all runs of the process
    one command to Redis: a place that Redis cannot read, or one in the future, would leave everybody without news."""
    found = _PLACE.fullmatch(asked)
    if found is None:
        return "0-0"
    newest = events.last_id(f"run:{run_id}")
    return min(asked, newest, key=lambda place: tuple(int(part) for part in place.split("-")))


@router.get("/runs/{run_id}/events")
async def follow_run(
    request: Request,
    run_id: str,
    actor: ActorDep,
    after: str = "0-0",
    skip: str = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """The page's stream: fragments that changed, `metrics` with new points, `done` at the end."""

    def allowed() -> bool:
        with reading() as session:
            run = service.get(session, actor, run_id)
            return actor.may(run.workspace_id, "editor")

    may_edit = await run_in_threadpool(allowed)
    begin = await run_in_threadpool(_place, run_id, last_event_id or after)
    watcher = Watcher(may_edit, frozenset(skip.split(",")) - {""})
    return StreamingResponse(hub.watch(run_id, begin, watcher), media_type="text/event-stream", headers=_HEADERS)
