"""/v1/completions: a plain text goes on. What clients send and get back; the stream is that of chat completions."""

import codecs
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from app.contracts.generation import Likely, ReadToken, Sampling, TokenEvent, TokenLogprob
from app.core.errors import BadRequest, Invalid
from app.deployments import stream, wire
from app.deployments.wire import Whole
from app.inference import client
from app.inference.targets import Target

MAX_PROMPTS, MAX_CHOICES = 32, 64
MAX_IDS = 131_072
Ids = Annotated[list[Annotated[Whole, Field(ge=0, lt=2**31)]], Field(max_length=MAX_IDS)]


class TextRequest(wire.SamplingRequest):
    """The body of /v1/completions."""

    prompt: str | list[str] | Ids | list[Ids]
    max_tokens: Annotated[Whole, Field(ge=0, le=32_768)] | None = None
    best_of: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """What to go on from: texts, or ids of the model's own tokenizer."""
        match self.prompt:
            case str() as text:
                return [text]
            case [int(), *_] as ids:
                return [[one for one in ids if isinstance(one, int)]]
            case several:
                return [one for one in several if not isinstance(one, int)]

    @property
    def choices(self) -> int:
        """How many answers in all: `n` for each prompt, in the order of the prompts."""
        return len(self.prompts) * (self.n or 1)

    @property
    def is_read(self) -> bool:
        """Whether the prompt's own tokens are told: with their probabilities, because their text is not known, or
        because nothing else is asked for."""
        return self.echo and (self.logprobs is not None or self.max_tokens == 0 or not isinstance(self.prompts[0], str))

    def prompt_at(self, choice: int) -> int:
        """Which prompt a choice goes on from."""
        return choice // (self.n or 1)

    def sampling(self, choice: int) -> Sampling:
        """How the tokens of a choice are drawn and told, with OpenAI's own defaults for this route."""
        return self.sampling_of(
            choice % (self.n or 1),
            temperature=1.0 if self.temperature is None else self.temperature,
            # Of 0 nothing is asked of the model at all.
            max_tokens=16 if self.max_tokens is None else max(1, self.max_tokens),
            top_logprobs=self.logprobs,
        )


def parse(body: bytes) -> TextRequest:
    """The request in a body. Raises BadRequest where it is wrong, or asks for what would be ignored."""
    request = wire.parsed(TextRequest, body)
    if not 1 <= len(request.prompts) <= MAX_PROMPTS or [] in request.prompts:
        sentence = f"Send 1 to {MAX_PROMPTS} prompts at a time: texts, or lists of token ids that are not empty."
        raise BadRequest(sentence, code="invalid_value", param="prompt")
    if request.choices > MAX_CHOICES:
        sentence = f"Send at most {MAX_CHOICES} prompts times n."
        raise BadRequest(sentence, code="invalid_value", param="n")
    if request.max_tokens == 0 and not request.echo:
        sentence = "“max_tokens” may be 0 only with “echo”, to have the prompt's own tokens told."
        raise BadRequest(sentence, code="invalid_value", param="max_tokens")
    asked = {"suffix": bool(request.suffix), "best_of": (request.best_of or 1) > (request.n or 1)}
    for name, is_there in asked.items():
        if is_there:
            raise BadRequest(f"“{name}” is not supported. {wire.MEANING}", code="unsupported_parameter", param=name)
    return request


class TextCompletion(stream.Completion):
    """One request of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    ask: TextRequest

    async def prepare(self, target: Target) -> None:
        """Read the prompts themselves where their tokens are told. Raises BadRequest for one that cannot be read."""
        prompts = self.ask.prompts
        self.read: list[list[ReadToken]] = [[] for _ in prompts]
        if self.ask.is_read:
            top = self.ask.logprobs or 0
            self.read = [await run_in_threadpool(_read, target, prompt, top) for prompt in prompts]
        self.lists = [Lists() for _ in range(self.ask.choices)]
        if self.ask.max_tokens == 0:
            self.events = _nothing([len(self.read[self.prompt_at(i)]) for i in range(self.ask.choices)])

    def prompt_at(self, choice: int) -> int:
        """Which prompt a choice goes on from."""
        return self.ask.prompt_at(choice)

    def echoed(self, choice: int) -> str:
        """The prompt as text."""
        prompt = self.ask.prompts[self.prompt_at(choice)]
        if isinstance(prompt, str):
            return prompt
        return b"".join(bytes(one.bytes) for one in self.read[self.prompt_at(choice)]).decode(errors="replace")

    def choice(self, index: int, text: str, reason: str, told: list[TokenLogprob]) -> dict[str, Any]:
        """One whole answer, behind its prompt where `echo` asks for it."""
        said = self.echoed(index) + text if self.ask.echo else text
        logprobs = self._logprobs(index, [*self.read[self.prompt_at(index)], *told])
        return {"index": index, "text": said, "finish_reason": reason, "logprobs": logprobs}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The prompt where `echo` asks for it; else nothing."""
        read: list[Told] = [*self.read[self.prompt_at(index)]]
        return self._piece(index, self.echoed(index), read) if self.ask.echo else []

    def piece(self, index: int, text: str, told: list[TokenLogprob] | None) -> list[dict[str, Any]]:
        """A chunk with text."""
        return self._piece(index, text, [*(told or [])])

    def ending(self, index: int, reason: str | None) -> list[dict[str, Any]]:
        """The last chunk of an answer."""
        return [{"index": index, "text": "", "finish_reason": reason, "logprobs": None}]

    def _piece(self, index: int, text: str, told: "list[Told]") -> list[dict[str, Any]]:
        return [{"index": index, "text": text, "finish_reason": None, "logprobs": self._logprobs(index, told)}]

    def _logprobs(self, index: int, told: "list[Told]") -> dict[str, Any] | None:
        return self.lists[index].of(told) if told and self.ask.logprobs is not None else None


Told = ReadToken | TokenLogprob


class Lists:
    """OpenAI's older shape of log-probabilities, four lists of one length; offsets count characters of the text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._position = 0

    def of(self, told: Sequence[Told]) -> dict[str, Any]:
        """The lists of the tokens that come next. A prompt's first token has no probability."""
        offsets = []
        for one in told:
            offsets.append(self._position)
            self._position += len(self._decoder.decode(bytes(one.bytes)))
        return {
            "tokens": [_name(one) for one in told],
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [None if one.logprob is None else _top(one, one.logprob) for one in told],
            "text_offset": offsets,
        }


def _top(one: Told, logprob: float) -> dict[str, float]:
    """The likeliest tokens by their names, and the one that is there, whatever its place."""
    return {_name(other): other.logprob for other in one.top} | {_name(one): logprob}


def _name(one: Told | Likely) -> str:
    """A token's text; where it is no whole character its bytes, as OpenAI writes them, since names must differ."""
    if "\ufffd" not in one.token:
        return one.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes)


def _read(target: Target, prompt: str | list[int], top: int) -> list[ReadToken]:
    try:
        tokens = client.foretell(target, prompt, top)
    except Invalid as error:
        raise stream.refused(error.sentence, "prompt") from error
    # Some tokenizers put a blank before a text, which nobody wrote.
    if tokens and isinstance(prompt, str) and not prompt.startswith(" ") and tokens[0].token.startswith(" "):
        first = tokens[0]
        tokens[0] = first.model_copy(update={"token": first.token[1:], "bytes": first.bytes[1:]})
    return tokens


async def _nothing(prompt_tokens: list[int]) -> stream.Events:
    """The events of answers of no tokens."""
    for index, count in enumerate(prompt_tokens):
        yield index, TokenEvent(finish_reason="length", prompt_tokens=count, completion_tokens=0)
