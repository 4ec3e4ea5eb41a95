"""/v1/completions: a plain text goes on. What clients send and get back; the stream is that of chat completions."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.contracts.generation import Likely, Sampling, TokenLogprob
from app.core.errors import BadRequest
from app.deployments import stream, wire
from app.deployments.wire import Number, StreamOptions, Whole

MAX_PROMPTS = 8
_MEANING = "It would change the meaning of the answer, so it is refused instead of ignored."


class TextRequest(BaseModel):
    """The body of /v1/completions. Unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200)
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[Whole, Field(ge=1, le=32_768)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=1000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    n: Annotated[Whole, Field(ge=1, le=wire.MAX_CHOICES)] | None = None
    best_of: Annotated[Whole, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _few_short(cls, value: str | list[str] | None) -> list[str]:
        words = [value] if isinstance(value, str) else value or []
        if len(words) > 16 or any(not word or len(word) > 200 for word in words):
            raise ValueError("At most 16 stop texts of 1 to 200 characters.")
        return words

    @property
    def prompts(self) -> list[str]:
        """The texts to go on from; `parse` has refused token ids."""
        found = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [text for text in found if isinstance(text, str)]

    @property
    def choices(self) -> int:
        """How many answers in all: `n` for each prompt, in the order of the prompts."""
        return len(self.prompts) * (self.n or 1)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def prompt_of(self, choice: int) -> str:
        """The text that a choice goes on from."""
        return self.prompts[choice // (self.n or 1)]

    def sampling(self, choice: int) -> Sampling:
        """How tokens are chosen. Each further choice of a seeded request gets a seed of its own."""
        given = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "max_tokens": self.max_tokens or 16,  # OpenAI's own defaults for this route
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "top_logprobs": self.logprobs,
            "seed": None if self.seed is None else (self.seed + choice % (self.n or 1)) % 2**63,
            "stop": self.stop or None,
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})


def parse(body: bytes) -> TextRequest:
    """The request in a body. Raises BadRequest where it is wrong, or asks for what would be ignored."""
    request = wire.parsed(TextRequest, body)
    if isinstance(request.prompt, list) and not all(isinstance(text, str) for text in request.prompt):
        sentence = "Prompts are taken as text, not as token ids: ids of another tokenizer would be other words."
        raise BadRequest(sentence, code="unsupported_parameter", param="prompt")
    if not 1 <= len(request.prompts) <= MAX_PROMPTS:
        raise BadRequest(f"Send 1 to {MAX_PROMPTS} prompts at a time.", code="invalid_value", param="prompt")
    asked = {
        "suffix": bool(request.suffix),
        "best_of": (request.best_of or 1) > (request.n or 1),
        "echo": request.echo and request.logprobs is not None,
    }
    for name, is_there in asked.items():
        if is_there:
            what = "echo with logprobs" if name == "echo" else name
            raise BadRequest(f"“{what}” is not supported. {_MEANING}", code="unsupported_parameter", param=name)
    return request


class TextCompletion(stream.Completion):
    """One request of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    ask: TextRequest

    def choice(self, index: int, text: str, reason: str, told: list[TokenLogprob]) -> dict[str, Any]:
        """One whole answer, behind its prompt where `echo` asks for it."""
        said = self.ask.prompt_of(index) + text if self.ask.echo else text
        return {"index": index, "text": said, "finish_reason": reason, "logprobs": _logprobs(told)}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The prompt where `echo` asks for it; else nothing."""
        return self.piece(index, self.ask.prompt_of(index), None) if self.ask.echo else []

    def piece(self, index: int, text: str, told: list[TokenLogprob] | None) -> list[dict[str, Any]]:
        """A chunk with text."""
        return [{"index": index, "text": text, "finish_reason": None, "logprobs": _logprobs(told)}]

    def ending(self, index: int, reason: str | None) -> list[dict[str, Any]]:
        """The last chunk of an answer."""
        return [{"index": index, "text": "", "finish_reason": reason, "logprobs": None}]


def _logprobs(told: list[TokenLogprob] | None) -> dict[str, Any] | None:
    """OpenAI's older shape: four lists of one length; offsets count characters of the answer's part."""
    if not told:
        return None
    offsets, position = [], 0
    for one in told:
        offsets.append(position)
        position += len(one.token)
    return {
        "tokens": [_name(one) for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [{_name(other): other.logprob for other in one.top} for one in told],
        "text_offset": offsets,
    }


def _name(one: Likely) -> str:
    """A token's text; where it is no whole character its bytes, as OpenAI writes them, since names must differ."""
    if "\ufffd" not in one.token:
        return one.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)
