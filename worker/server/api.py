"""The server's HTTP face on a Unix socket. Its clients are our own: the web edge, which checks keys and limits, and the
workers, which say what training takes of the machine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from app.contracts.base import Contract
from app.contracts.room import MadeRoom, Room
from worker.engine import compiled
from worker.engine.precision import Precision
from worker.server import answering, embedding, measuring
from worker.server.residents import Residents
from worker.server.rooms import Rooms
from worker.server.serving import Serving
from worker.server.turns import Turns
from worker.server.vllm import Away, Vllm


class UnloadRequest(Contract):
    """Which model to forget."""

    model_ref: str


def create_server(
    budget_bytes: int | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    compiles: bool = False,
    vllm: Vllm | None = None,
    rooms: Rooms | None = None,
) -> FastAPI:
    """The application; one model thread lives as long as it. `compiles`: faster answers on a CPU, after the about ten
    seconds that compiling takes the first time. What `vllm` holds, it answers; our own engine the rest. `rooms`: what
    training holds, as far as it is known already."""
    serving = Serving(Residents(budget_bytes, device, precision, rooms=rooms), Turns())
    if compiles and device == "cpu":
        # Models that were loaded meanwhile are loaded anew with the next question.
        compiled.prepare(serving.residents.forget_all)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(serving.turns.stop)
        if vllm is not None:
            await vllm.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    answering.install(app, serving, vllm)
    measuring.install(app, serving)
    embedding.install(app, serving)
    _install_models(app, serving, vllm)
    _install_rooms(app, serving)
    return app


def _install_models(app: FastAPI, serving: Serving, vllm: Vllm | None) -> None:
    """How the server is, what it holds, and a model to forget."""

    @app.get("/health")
    def health() -> dict[str, object]:
        return {"status": "ok", "compiled": compiled.state(), **serving.turns.counts()}

    @app.get("/models")
    def models() -> dict[str, object]:
        return {"models": serving.residents.listing(), "memory": serving.residents.memory()}

    @app.post("/unload")
    async def unload(order: UnloadRequest) -> dict[str, int]:
        count = await asyncio.to_thread(serving.residents.unload, order.model_ref)
        if vllm is not None:
            with suppress(Away):  # with it its adapters went
                count += await vllm.unload(order.model_ref)
        return {"unloaded": count}


def _install_rooms(app: FastAPI, serving: Serving) -> None:
    """What training takes of this machine's memory."""

    @app.put("/room")
    def hold(room: Room) -> MadeRoom:
        return MadeRoom(unloaded=serving.residents.hold(room))

    @app.delete("/room/{attempt_id}")
    def end(attempt_id: str) -> dict[str, str]:
        serving.residents.end_room(attempt_id)
        return {"status": "ok"}
