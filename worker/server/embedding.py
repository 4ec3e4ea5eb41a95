"""POST /embed: texts as vectors, read on the model thread a piece at a time between the steps of answers."""

import asyncio
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.recipe import ModelFiles
from worker.engine.embedding import Embedding
from worker.server.serving import REFUSALS, Serving, refusal


class EmbedRequest(Contract):
    """Texts that are each to become one vector."""

    model_ref: str
    files: ModelFiles
    texts: list[str] = Field(min_length=1, max_length=256)


def install(app: FastAPI, serving: Serving) -> None:
    """Add the route."""

    @app.post("/embed")
    async def embed(order: EmbedRequest) -> JSONResponse:
        vectors: list[dict[str, Any]] = []
        try:
            model = await serving.loaded(order.files, order.model_ref)
            for text in order.texts:
                reading = await asyncio.to_thread(Embedding, model, text)
                await serving.read(reading.step)
                vectors.append({"vector": reading.vector, "tokens": reading.tokens})
        except REFUSALS as error:
            return refusal(error)
        return JSONResponse({"vectors": vectors})
