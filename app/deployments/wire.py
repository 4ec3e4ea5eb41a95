"""The shapes of OpenAI's chat completions: what clients send, what they must get back."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from app.contracts.conversation import Message
from app.contracts.generation import AnswerFormat, JSONSchema, Likely, Sampling, TokenLogprob
from app.core.errors import BadRequest
from app.deployments import refusals
from app.deployments.names import Published

MAX_MESSAGES = 2000
MAX_CHOICES = 4
# Refused by presence: a caller's template is a program, whatever route it comes by.
FORBIDDEN = ("chat_template", "chat_template_kwargs")
MEANING = "It would change the meaning of the answer, so it is refused instead of ignored."

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]


class Part(BaseModel):
    """A piece of a message's content; only text can be understood."""

    type: Literal["text"]
    text: str


class WireMessage(BaseModel):
    """One message as clients send it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        kinds = [part.get("type") for part in value if isinstance(part, dict)] if isinstance(value, list) else []
        if any(kind != "text" for kind in kinds):
            raise ValueError(
                "This model reads text only, so every part must be of type text: no images, sound or files."
            )
        return value

    def plain(self) -> Message:
        """The message in the product's own words."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(BaseModel):
    include_usage: bool = False


class JsonSchema(BaseModel):
    """A named schema as OpenAI's clients send it."""

    name: str = ""
    schema_: JSONSchema = Field(alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's ways to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("A response format of type json_schema needs json_schema with name and schema.")
        return self


class StructuredOutputs(BaseModel):
    """vLLM's ways to ask for one of some texts, an expression or JSON; one of them."""

    choice: list[Annotated[str, Field(min_length=1, max_length=2000)]] | None = Field(None, max_length=500)
    regex: str | None = Field(None, max_length=10_000)
    json_: JSONSchema | None = Field(None, alias="json")

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        if sum(bool(one) for one in (self.choice, self.regex, self.json_)) != 1:
            raise ValueError("Give one of choice, regex and json.")
        return self

    def form(self) -> AnswerFormat:
        """The form in the product's own words."""
        if self.choice:
            return AnswerFormat(kind="choice", choices=self.choice)
        if self.regex:
            return AnswerFormat(kind="regex", regex=self.regex)
        return AnswerFormat(kind="json_schema", json_schema=self.json_)


class SamplingRequest(BaseModel):
    """What requests for chat and for text completions say alike: the model, and how its tokens are drawn and sent.

    Unknown fields are ignored, as OpenAI's clients expect.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200)
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=1000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    n: Annotated[Whole, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = None
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
    def tells_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_of(self, choice: int, **more: Any) -> Sampling:
        """How tokens are chosen, with what a route adds; None leaves the default. Each further choice of a seeded
        request gets a seed of its own."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "seed": None if self.seed is None else (self.seed + choice) % 2**63,
            "stop": self.stop or None,
        }
        return Sampling(**{name: value for name, value in (given | more).items() if value is not None})


class ChatRequest(SamplingRequest):
    """The body of /v1/chat/completions."""

    messages: list[WireMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: Annotated[Whole, Field(ge=1, le=32_768)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=32_768)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _is_told(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("It needs logprobs to be true.")
        return value

    @field_validator("structured_outputs")
    @classmethod
    def _is_one_form(cls, value: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        other = info.data.get("response_format")
        if value and other and other.type != "text":
            raise ValueError("Give response_format or structured_outputs, not both.")
        return value

    def form(self) -> AnswerFormat | None:
        """The form that the answer must have; None for any."""
        if self.structured_outputs:
            return self.structured_outputs.form()
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_schema" and asked.json_schema:
            return AnswerFormat(kind="json_schema", json_schema=asked.json_schema.schema_)
        return AnswerFormat(kind="json_object")

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    def conversation(self, system_prompt: str) -> list[Message]:
        """The messages; the prompt that the model was trained with goes first where the caller brings none."""
        messages = [message.plain() for message in self.messages]
        if system_prompt and messages[0].role != "system":
            messages.insert(0, Message(role="system", content=system_prompt))
        return messages

    def sampling(self, choice: int) -> Sampling:
        """How the tokens of a choice are drawn and told."""
        return self.sampling_of(
            choice,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            format=self.form(),
            max_tokens=self.max_completion_tokens or self.max_tokens,
        )


Request = TypeVar("Request", bound=BaseModel)


def parse(body: bytes) -> ChatRequest:
    """The request in a body. Raises BadRequest with the field's name, never with its value."""
    request = parsed(ChatRequest, body)
    _refuse_unsupported(request)
    return request


def parsed(model: type[Request], body: bytes) -> Request:
    """A body as `model`. Raises BadRequest with the field's name, never with its value."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from error
    if not isinstance(values, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    for name in FORBIDDEN:
        if name in values:
            sentence = f"“{name}” is not taken: the model's own template is always used."
            raise BadRequest(sentence, code="unsupported_parameter", param=name)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        param, sentence = refusals.told(error)
        message = f"{param}: {sentence}" if param else sentence
        raise BadRequest(message, code="invalid_value", param=param or None) from error


def _refuse_unsupported(request: ChatRequest) -> None:
    # “auto” leaves the choice to the model, and these always answer in words; a call that is demanded cannot be made.
    if request.tools and request.tool_choice not in (None, "auto", "none"):
        sentence = f"This model calls no tools, so none can be demanded with “tool_choice”. {MEANING}"
        raise BadRequest(sentence, code="unsupported_parameter", param="tool_choice")
    if request.functions:
        sentence = f"“functions” is not supported by this model. {MEANING}"
        raise BadRequest(sentence, code="unsupported_parameter", param="functions")
    for index, message in enumerate(request.messages):
        if message.role == "tool" or message.tool_calls:
            sentence = f"Tool messages are not supported by this model. {MEANING}"
            raise BadRequest(sentence, code="unsupported_parameter", param=f"messages.{index}")


def seconds(at: datetime) -> int:
    """Whole Unix seconds."""
    return int(at.timestamp())


def model_object(one: Published) -> dict[str, Any]:
    """An entry of /v1/models."""
    return {
        "id": one.id,
        "object": "model",
        "created": seconds(one.created_at),
        "owned_by": "gpt-builder",
        "root": one.parent or one.id,
        "parent": one.parent,
        "name": one.name,
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts as the model server reported them."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def head(completion_id: str, kind: str, created: int, model: str, fingerprint: str) -> dict[str, Any]:
    """What every completion and every chunk begins with."""
    return {"id": completion_id, "object": kind, "created": created, "model": model, "system_fingerprint": fingerprint}


def choice(index: int, text: str, finish_reason: str, told: list[TokenLogprob]) -> dict[str, Any]:
    """One whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "finish_reason": finish_reason, "logprobs": logprobs(told)}


def delta(
    index: int, content: dict[str, Any], finish_reason: str | None = None, told: list[TokenLogprob] | None = None
) -> list[dict[str, Any]]:
    """The choices of one chunk."""
    return [{"index": index, "delta": content, "finish_reason": finish_reason, "logprobs": logprobs(told)}]


def logprobs(told: list[TokenLogprob] | None) -> dict[str, Any] | None:
    """Log-probabilities of an answer's tokens; null where none were asked for."""
    if not told:
        return None
    content = [_likely(one) | {"top_logprobs": [_likely(other) for other in one.top]} for one in told]
    return {"content": content, "refusal": None}


def _likely(one: Likely) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": one.bytes}
