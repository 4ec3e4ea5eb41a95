"""One answer asked of a model: what web and evaluation say to the model server, and what comes back."""

from typing import Literal

from pydantic import Field

from app.contracts.base import Contract
from app.contracts.conversation import Message
from app.contracts.recipe import ModelFiles


class Sampling(Contract):
    """How the next token is chosen. Temperature 0 is greedy."""

    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000, description="0: off")
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    max_tokens: int = Field(256, ge=1, le=32_768)
    stop: list[str] = Field(default_factory=list, max_length=16)


class GenerationRequest(Contract):
    """A conversation (or a plain text to go on from) for one model."""

    model_ref: str = Field(description="id of the model, for caches and statistics")
    workspace_id: str
    files: ModelFiles
    messages: list[Message] | None = None
    prompt: str | None = None
    sampling: Sampling = Field(default_factory=Sampling)


class TokenEvent(Contract):
    """A piece of text, whole characters only; the last one carries the reason and the counts."""

    text: str = ""
    finish_reason: Literal["stop", "length", "cancelled", "error"] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    error: str | None = None
    error_kind: Literal["busy", "refused", "failed"] | None = None
