"""One answer asked of a model: what web and evaluation say to the model server, and what comes back."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from app.contracts.base import Contract, Said
from app.contracts.conversation import Message
from app.contracts.recipe import ModelFiles

SCHEMA_LEVELS = 100


def _within_levels(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, if its objects and lists lie at most SCHEMA_LEVELS deep in each other. Raises ValueError."""
    level: list[Any] = [schema]
    for _ in range(SCHEMA_LEVELS):
        inner = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return schema
    raise ValueError(f"The schema is nested deeper than {SCHEMA_LEVELS} levels. Use a flatter one.")


JSONSchema = Annotated[dict[str, Any], AfterValidator(_within_levels)]


class AnswerFormat(Contract):
    """The form that an answer must have, kept token by token: any JSON object, one that fits a schema, one of some
    texts, or a regular expression (no look-around, no back references)."""

    kind: Literal["json_object", "json_schema", "choice", "regex"]
    json_schema: JSONSchema | None = None
    choices: list[Annotated[str, Field(min_length=1, max_length=2000)]] = Field(default_factory=list, max_length=500)
    regex: str | None = Field(None, min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _is_whole(self) -> "AnswerFormat":
        given = {"json_schema": self.json_schema is not None, "choice": bool(self.choices), "regex": bool(self.regex)}
        if not given.get(self.kind, True):
            raise ValueError(f"the format {self.kind} lacks what it is made of")
        return self


class Sampling(Contract):
    """How the next token is chosen. Temperature 0 is greedy."""

    temperature: float = Field(0.7, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1000, description="0: off")
    min_p: float = Field(0.0, ge=0, le=1, description="least share of the likeliest token's probability; 0: off")
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=1024)
    top_logprobs: int | None = Field(None, ge=0, le=20, description="None: no log-probabilities are told")
    format: AnswerFormat | None = None
    seed: int | None = Field(None, ge=0, le=2**63 - 1)
    max_tokens: int = Field(256, ge=1, le=32_768)
    stop: list[str] = Field(default_factory=list, max_length=16)


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1_000_000)]


class GenerationRequest(Contract):
    """A conversation, or a plain text (or its token ids) to go on from, for one model."""

    model_ref: str = Field(description="id of the model, for caches and statistics")
    workspace_id: str
    files: ModelFiles
    messages: list[Message] | None = None
    prompt: str | None = None
    prompt_ids: TokenIds | None = Field(None, description="the plain text as ids of the model's own tokenizer")
    sampling: Sampling = Field(default_factory=Sampling)


LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON has no number for


class Likely(Contract):
    """A token, its text (of broken characters only the bytes tell), its bytes, and its log-probability in nats."""

    id: int
    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Likely):
    """A token that was said, and the likeliest ones in its place: as the model gave them, before any setting."""

    top: list[Likely] = Field(default_factory=list)


class ReadToken(Contract):
    """A token of a text that a model has read: its log-probability behind what stands before it (None: nothing does),
    and the likeliest ones in its place."""

    id: int
    token: str
    bytes: list[int]
    logprob: float | None = None
    top: list[Likely] = Field(default_factory=list)


class Waiting(Contract):
    """What an answer waits for before its first word: the server itself, its model's way from disk, its turn, or memory
    that training (or, with nothing in `training_bytes`, other answers) holds."""

    why: Literal["server", "loading", "turn", "memory"]
    so_far_s: float = Field(0.0, ge=0)
    is_again: bool = Field(False, description="the model had been unloaded to make room for training")
    before: int = Field(0, ge=0, description="answers whose turn comes sooner")
    needed_bytes: int = Field(0, ge=0)
    left_bytes: int = Field(0, ge=0, description="what is left for the models of answers")
    training_bytes: int = Field(0, ge=0)
    training_left_s: float | None = Field(None, ge=0, description="until training leaves enough; None: nobody knows")


class TokenEvent(Contract):
    """A piece of text, whole characters only; the last one carries the reason and the counts."""

    text: Said = ""
    waiting: Waiting | None = Field(
        None, description="a sign of life of an answer that has not begun, about one a second"
    )
    logprobs: list[TokenLogprob] | None = Field(None, description="of the tokens said since the last event")
    finish_reason: Literal["stop", "length", "cancelled", "error"] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    error: str | None = None
    error_kind: Literal["busy", "full", "refused", "failed"] | None = None
