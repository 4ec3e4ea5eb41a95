"""The live text of one answer: from Redis as it is said, from the database when Redis is away."""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.chat import ratings, service
from app.chat.models import TAGS_BY_THUMB, ChatMessage
from app.chat.waiting import Waited
from app.core import events, markdown
from app.core.db import reading
from app.core.errors import NotFound
from app.core.templates import render_text
from app.projects import service as projects

router = APIRouter()
POLL_S = 0.5
RENDER_EVERY_S = 0.07
READ_OUT_EVERY_S = 300.0  # a wait of the same kind: its times and numbers change with every look at the training
READ_OUT_FOR_S = 10.0
_LINE_END = re.compile(r"\r\n|\r|\n")


@router.get("/chats/messages/{message_id}/events")
async def follow(request: Request, message_id: str, actor: ActorDep) -> StreamingResponse:
    """Blocks of the answer as they grow, then the finished article, then `done`."""
    await run_in_threadpool(_message, actor, message_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(actor, message_id), media_type="text/event-stream", headers=headers)


def _message(actor: Actor, message_id: str) -> ChatMessage:
    with reading() as session:
        return service.get_message(session, actor, message_id)[1]


async def _events(actor: Actor, message_id: str) -> AsyncGenerator[bytes]:
    shown = Shown(message_id)
    try:
        is_masked = await run_in_threadpool(_is_masked, actor, message_id)
        async for text in _texts(actor, message_id):
            if fragment := shown.fragment(text) if isinstance(text, str) else shown.waiting(text, is_masked):
                yield _sse(fragment)
        article = await run_in_threadpool(_article, actor, message_id)
    except NotFound:  # without a last word the page would ask for ever
        article = render_text("chat/_gone.html", message_id=message_id)
    yield _sse(article)
    yield b"event: done\ndata: done\n\n"


def _is_masked(actor: Actor, message_id: str) -> bool:
    with reading() as session:
        chat, message = service.get_message(session, actor, message_id)
        return service.turn_of(session, chat, message).is_masked


async def _texts(actor: Actor, message_id: str) -> AsyncIterator[str | Waited]:
    """What the answer waits for, then the whole text so far, each time it has grown; ends when the answer has."""
    message = await run_in_threadpool(_message, actor, message_id)
    if message.state != "streaming":
        return
    text, rendered_at = "", 0.0
    loop = asyncio.get_running_loop()
    with suppress(RedisError):
        async for entry in events.follow(f"chat:{message_id}", "0-0", block_ms=2000):
            if entry is None:
                if (await run_in_threadpool(_message, actor, message_id)).state != "streaming":
                    return
                continue
            _, event, payload = entry
            if event == "end":
                yield text
                return
            if event == "waiting":
                yield Waited(**payload)
                continue
            if payload["at"] != len(text):
                break  # pieces are missing: Redis was away, or has lost what it had
            text += payload["text"]
            if loop.time() - rendered_at >= RENDER_EVERY_S:
                rendered_at = loop.time()
                yield text
    while (message := await run_in_threadpool(_message, actor, message_id)).state == "streaming":
        if len(message.content) > len(text):
            text = message.content
            yield text
        elif not text and (waited := Waited.kept_in(message.statistics)):
            yield waited
        await asyncio.sleep(POLL_S)


class Shown:
    """Which blocks of an answer the page has; finished ones are never sent again."""

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self._line = 0
        self._tail = ""
        self._waited: Waited | None = None
        self._read_out_at = -math.inf

    def waiting(self, waited: Waited, is_masked: bool) -> str:
        """What the answer waits for; empty when nothing about it has changed. It is read out when it waits for
        something else than before, and now and then."""
        before, self._waited = self._waited, waited
        if before == waited:
            return ""
        now = time.monotonic()
        is_read_out = before is None or before.why != waited.why or now - self._read_out_at >= READ_OUT_EVERY_S
        # It goes with a later change: whoever walks through the page meets the sentence once.
        is_over = not is_read_out and now - self._read_out_at >= READ_OUT_FOR_S
        if is_read_out:
            self._read_out_at = now
        names = {"message_id": self.message_id, "is_masked": is_masked}
        return render_text("chat/_waited.html", waited=waited, is_read_out=is_read_out, is_over=is_over, **names)

    def fragment(self, text: str) -> str:
        """What changed, as upserts of blocks by id; empty when nothing did."""
        blocks = markdown.blocks(text, self._line)
        if not blocks:
            return ""
        tail = str(blocks[-1])
        if tail == self._tail:
            return ""
        self._tail, self._line = tail, blocks[-1][0]
        has_waited, self._waited = self._waited is not None, None
        return render_text("chat/_blocks.html", message_id=self.message_id, blocks=blocks, has_waited=has_waited)


def _article(actor: Actor, message_id: str) -> str:
    with reading() as session:
        chat, message = service.get_message(session, actor, message_id)
        return render_text(
            "chat/_replaced.html",
            message=message,
            turn=service.turn_of(session, chat, message),
            may_ask=actor.may(projects.get(session, actor, chat.project_id).workspace_id, service.ASKS),
            chat=chat,
            names=service.names(session, actor, chat),
            ratings=ratings.by_message(session, actor, chat),
            body=markdown.render(message.content),
            tags=TAGS_BY_THUMB,
            memory=service.memory_of(session, actor, chat),
        )


def _sse(html: str) -> bytes:
    """One unnamed event; every line is a data line, so no text can end the event or forge another."""
    # Only these three end a line of a stream; str.splitlines would also eat characters such as U+2028.
    return b"".join(b"data: " + line.encode() + b"\n" for line in _LINE_END.split(html)) + b"\n"
