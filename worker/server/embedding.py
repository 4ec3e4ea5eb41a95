"""POST /embed: texts as vectors, read on the model thread a piece at a time between the steps of answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.recipe import ModelFiles
from worker.engine.embedding import Embedding
from worker.engine.errors import EngineError
from worker.engine.generate import Loaded


class EmbedRequest(Contract):
    """Texts that are each to become one vector."""

    model_ref: str
    files: ModelFiles
    texts: list[str] = Field(min_length=1, max_length=256)


def install(
    app: FastAPI,
    loaded: Callable[[ModelFiles, str], Awaitable[Loaded]],
    on_model_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
) -> None:
    """Add the route. `on_model_thread` does a short piece of work there and gives what came of it."""

    @app.post("/embed")
    async def embed(order: EmbedRequest) -> JSONResponse:
        vectors: list[dict[str, Any]] = []
        try:
            model = await loaded(order.files, order.model_ref)
            for text in order.texts:
                reading = await asyncio.to_thread(Embedding, model, text)
                while not await on_model_thread(reading.step):
                    pass
                vectors.append({"vector": reading.vector, "tokens": reading.tokens})
        except EngineError as error:
            return JSONResponse({"error": str(error)}, status_code=422)
        except OSError:
            sentence = "The model's files cannot be read. They may have been moved or deleted."
            return JSONResponse({"error": sentence}, status_code=422)
        return JSONResponse({"vectors": vectors})
