"""POST /score and /foretell: how probable a model finds given words, read on the model thread piece by piece."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.conversation import Message
from app.contracts.generation import TokenIds
from app.contracts.recipe import ModelFiles
from worker.engine.foretelling import Foretelling
from worker.engine.scoring import Scoring
from worker.server.serving import REFUSALS, Serving, refusal


class ScoreRequest(Contract):
    """Answers to score after a conversation (or a plain prompt)."""

    model_ref: str
    files: ModelFiles
    messages: list[Message] | None = None
    prompt: str = ""
    answers: list[str] = Field(min_length=1, max_length=256)
    patience_s: float | None = Field(None, ge=0, le=100, description="how long the model is waited for")


class ForetellRequest(Contract):
    """A text, or its token ids, whose every token is to be given its probability."""

    model_ref: str
    files: ModelFiles
    text: str = ""
    ids: TokenIds | None = None
    top_logprobs: int = Field(0, ge=0, le=20)


def install(app: FastAPI, serving: Serving) -> None:
    """Add the routes."""

    @app.post("/score")
    async def score_answers(order: ScoreRequest) -> JSONResponse:
        try:
            model = await serving.loaded(order.files, order.model_ref, order.patience_s)
            results: list[dict[str, Any]] = []
            for text in order.answers:
                scoring = await asyncio.to_thread(Scoring, model, order.messages, order.prompt, text)
                await serving.read(scoring.step)
                results.append(asdict(scoring.score))
        except REFUSALS as error:
            return refusal(error)
        return JSONResponse({"scores": results})

    @app.post("/foretell")
    async def foretell(order: ForetellRequest) -> JSONResponse:
        try:
            model = await serving.loaded(order.files, order.model_ref)
            reading = await asyncio.to_thread(Foretelling, model, order.text, order.top_logprobs, order.ids)
            await serving.read(reading.step)
        except REFUSALS as error:
            return refusal(error)
        return JSONResponse({"tokens": [token.model_dump() for token in reading.tokens]})
