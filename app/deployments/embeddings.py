"""/v1/embeddings: texts as vectors, made of a language model's own hidden states. They compare texts roughly; a model
trained for search does it better, and nothing here says otherwise."""

import base64
import struct
import time
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import AppError, BadRequest, Invalid
from app.deployments import stream, wire
from app.deployments.access import CallerDep
from app.deployments.asked import target_of
from app.deployments.calls import Facts
from app.deployments.keys import Caller
from app.deployments.wire import Whole
from app.inference import client

router = APIRouter(prefix="/v1")
BODY_LIMIT_BYTES = 8 * 2**20
MAX_TEXTS = 256
METHOD = "mean of the last hidden states, length 1"


class EmbeddingRequest(BaseModel):
    """The body of /v1/embeddings. Unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200)
    input: str | list[str] | list[Whole] | list[list[Whole]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = None

    @property
    def texts(self) -> list[str]:
        """The texts; `parse` has refused token ids."""
        return [self.input] if isinstance(self.input, str) else [one for one in self.input if isinstance(one, str)]


def parse(body: bytes) -> EmbeddingRequest:
    """The request in a body. Raises BadRequest where it is wrong, or asks for what cannot be given."""
    ask = wire.parsed(EmbeddingRequest, body)
    if isinstance(ask.input, list) and not all(isinstance(text, str) for text in ask.input):
        sentence = (
            "Send texts, not token ids: ids of another tokenizer would be other words. In LangChain set "
            "check_embedding_ctx_length=False."
        )
        raise BadRequest(sentence, code="unsupported_parameter", param="input")
    if not 1 <= len(ask.texts) <= MAX_TEXTS or not all(ask.texts):
        sentence = f"Send 1 to {MAX_TEXTS} texts at a time, none of them empty."
        raise BadRequest(sentence, code="invalid_value", param="input")
    if ask.dimensions is not None:
        sentence = "“dimensions” is not supported: a vector is as wide as its model."
        raise BadRequest(sentence, code="unsupported_parameter", param="dimensions")
    return ask


@router.post("/embeddings", max_body_size=BODY_LIMIT_BYTES)
async def embeddings(request: Request, caller: CallerDep) -> Response:
    """Vectors of texts."""
    caller.require("chat")
    body = await request.body()
    answer = await run_in_threadpool(_answer, caller, body)
    headers = request.scope["state"]["limit_headers"]
    return Response(orjson.dumps(answer), media_type="application/json", headers=headers)


def _answer(caller: Caller, body: bytes) -> dict[str, Any]:
    facts, started = Facts("embeddings"), time.monotonic()
    try:
        ask = parse(body)
        facts.model = ask.model
        published, target = target_of(caller, ask.model)
        facts.project_id = published.project_id
        try:
            vectors = client.embed(target, ask.texts)
        except Invalid as error:
            raise stream.refused(error.sentence, "input") from error
        facts.prompt_tokens = sum(tokens for _, tokens in vectors)
    except AppError as error:
        facts.status, facts.finish_reason = error.status, "error"
        raise
    finally:
        facts.total_s = time.monotonic() - started
        stream.record(caller, facts)
    shown = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, ask.encoding_format)}
        for index, (vector, _) in enumerate(vectors)
    ]
    usage = {"prompt_tokens": facts.prompt_tokens, "total_tokens": facts.prompt_tokens}
    return {"object": "list", "data": shown, "model": ask.model, "usage": usage, "method": METHOD}


def _encoded(vector: list[float], form: str) -> list[float] | str:
    """Numbers, or little-endian float32 in base64, which OpenAI's clients ask for."""
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
