"""What all routes share: loaded models, waited for with signs of life, and the one thread that touches tensors."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any

from fastapi.responses import JSONResponse

from app.contracts.generation import Waiting
from app.contracts.recipe import ModelFiles
from app.text.template import TemplateFault
from worker.engine.errors import EngineError
from worker.engine.generate import Loaded
from worker.server.residents import NoRoom, Residents
from worker.server.turns import Busy, Turns

BEAT_S = 1.0  # between two signs of life of an answer that has not begun
LOOK_S = 0.5  # between two looks for memory
SHORT_PATIENCE_S = 20.0  # of routes that answer as a whole: whoever asked is told why, and asks again
MOST_WAITING = 64  # for memory; each holds a connection


class Waits(Exception):
    """The model is not there yet; `waiting` says why."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__(waiting)
        self.waiting = waiting


class Serving:
    """The models and the model thread of one server."""

    def __init__(self, residents: Residents, turns: Turns) -> None:
        self.residents, self.turns = residents, turns
        self._waiting = 0

    async def coming(self, files: ModelFiles, ref: str) -> AsyncGenerator[Waiting | Loaded]:
        """The model as the last item; before it, about once a second, what it waits for. Loading goes on when nobody
        waits any more. Raises what loading raised, and Busy when too many wait for memory."""
        began, told_at = time.monotonic(), 0.0
        found: asyncio.Future[Loaded] | None = None
        is_again = await asyncio.to_thread(self.residents.has_given_way, files)
        with ExitStack() as place:
            while found is None:
                try:
                    found = asyncio.wrap_future(await asyncio.to_thread(self.residents.get, files, ref))
                except NoRoom as reason:
                    if not told_at:
                        place.enter_context(self._place())
                    now = time.monotonic()
                    if now - told_at >= BEAT_S:
                        told_at = now
                        yield reason.waiting.model_copy(update={"so_far_s": now - began})
                    await asyncio.sleep(LOOK_S)
        began = time.monotonic()
        while not (await asyncio.wait({found}, timeout=BEAT_S))[0]:
            yield Waiting(why="loading", so_far_s=time.monotonic() - began, is_again=is_again)
        yield found.result()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places of those that wait for memory, kept for as long as it waits. Raises Busy."""
        if self._waiting >= MOST_WAITING:
            raise Busy
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def loaded(self, files: ModelFiles, ref: str, patience_s: float | None = None) -> Loaded:
        """The model, for routes that answer as a whole. Raises Waits where it takes longer, and as `coming`."""
        give_up_at = time.monotonic() + (SHORT_PATIENCE_S if patience_s is None else patience_s)
        async with aclosing(self.coming(files, ref)) as coming:
            async for one in coming:
                if isinstance(one, Loaded):
                    return one
                if time.monotonic() >= give_up_at:
                    raise Waits(one)
        raise AssertionError("the last item is the model")

    async def on_model_thread(self, work: Callable[[], Any]) -> Any:
        """What a short piece of work gives, done on the model thread between the steps of answers."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.turns.call(_settling(loop, future, work))
        return await future

    async def read(self, step: Callable[[], bool]) -> None:
        """Let the model thread take step after step, one in each of its rounds, until one says that it was the last."""
        while not await self.on_model_thread(step):
            pass


def sentence(error: BaseException) -> str:
    """What to tell of an error that a model's files or a question brought."""
    if isinstance(error, OSError):
        return "The model's files cannot be read. They may have been moved or deleted."
    return str(error)


REFUSALS = (EngineError, TemplateFault, OSError, Waits, Busy)


def refusal(error: BaseException) -> JSONResponse:
    """How a route that answers as a whole refuses, of one of REFUSALS."""
    if isinstance(error, Waits):
        return JSONResponse({"waiting": error.waiting.model_dump()}, status_code=503)
    if isinstance(error, Busy):
        return JSONResponse({"error": BUSY, "is_full": True}, status_code=503)
    return JSONResponse({"error": sentence(error)}, status_code=422)


BUSY = "Too many answers are waiting. Try again shortly."


def _settling(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", work: Callable[[], Any]
) -> Callable[[], None]:
    """A call for the model thread that puts what `work` gives, or what went wrong, into `future`."""

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(value)

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # a panic of a library is no Exception, and would end the model thread
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, value, None)

    return run
