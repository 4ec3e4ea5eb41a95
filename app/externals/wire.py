"""OpenAI's wire as other servers speak it: the body of a question, the lines of an answer. Pure; no connection here."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import orjson

from app.contracts.conversation import Message
from app.contracts.generation import Likely, Sampling, TokenEvent, TokenLogprob

LINE_LIMIT_BYTES = 2**20
ANSWER_LIMIT_BYTES = 20 * 2**20
UNKNOWN_ID = -1  # the wire tells tokens as text only
# What may be left out when a server does not know it: the answer stays the same but for what is told about it.
_DROPPED = {"stream_options": ("stream_options",), "logprobs": ("logprobs", "top_logprobs"), "seed": ("seed",)}


class Broken(Exception):
    """The answer is not what OpenAI's wire prescribes, or too large."""


class Failed(Exception):
    """The server told of an error in the middle of its answer; the text is the server's."""


def body(model: str, messages: list[Message], sampling: Sampling) -> dict[str, Any]:
    """A streamed chat completion; settings that are off are not sent, since not every server knows them."""
    found: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    off = Sampling()
    for name in ("top_p", "frequency_penalty", "presence_penalty", "seed", "stop"):
        if (value := getattr(sampling, name)) != getattr(off, name):
            found[name] = value
    if sampling.top_logprobs is not None:
        found |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return found


def adapted(asked: dict[str, Any], refusal: str) -> dict[str, Any] | None:
    """The same question for a server that named in its refusal what it does not know; None where nothing helps."""
    if "max_tokens" in asked and "max_completion_tokens" in refusal:
        rest = {name: value for name, value in asked.items() if name != "max_tokens"}
        return rest | {"max_completion_tokens": asked["max_tokens"]}
    if "temperature" in asked and "temperature" in refusal and "only the default" in refusal.lower():
        return {name: value for name, value in asked.items() if name != "temperature"}
    for name, together in _DROPPED.items():
        if name in asked and name in refusal:
            return {key: value for key, value in asked.items() if key not in together}
    return None


def said_in(refusal: bytes) -> str:
    """What a server wrote beside a bad status: the message of OpenAI's errors or of others; empty where none is."""
    try:
        found = orjson.loads(refusal)
    except orjson.JSONDecodeError:
        return ""
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return " ".join(found.split())[:300] if isinstance(found, str) else ""


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of an answer, bounded. Raises Broken."""
    rest, seen = b"", 0
    for piece in pieces:
        seen += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        if seen > ANSWER_LIMIT_BYTES or len(rest) > LINE_LIMIT_BYTES:
            raise Broken
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest.rstrip(b"\r")


def events(found: Iterable[bytes]) -> Iterator[TokenEvent]:
    """The events of a streamed answer, from the lines of it; the last one has the finish_reason and the counts.

    An answer that is cut ends without one. Raises Broken, and Failed with the server's own words.
    """
    end = TokenEvent()
    for line in found:
        if not line.startswith(b"data:"):
            continue
        told = line[5:].strip()
        if told == b"[DONE]":
            yield end.model_copy(update={"finish_reason": end.finish_reason or "stop"})
            return
        event = event_of(loaded(told))
        end = end.model_copy(update=_kept(event))
        if event.text or event.logprobs:
            yield TokenEvent(text=event.text, logprobs=event.logprobs)
    if end.finish_reason:
        yield end


def loaded(text: bytes) -> dict[str, Any]:
    """A JSON object. Raises Broken."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Broken from error
    if not isinstance(found, dict):
        raise Broken
    return found


def event_of(payload: dict[str, Any]) -> TokenEvent:
    """One chunk, or a whole answer of a server that does not stream, as an event. Raises Broken and Failed."""
    if payload.get("error"):
        raise Failed(said_in(orjson.dumps(payload)))
    usage = payload.get("usage") or {}
    try:
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        first = (payload.get("choices") or [{}])[0]
        text = (first.get("delta") or first.get("message") or {}).get("content") or ""
        told = (first.get("logprobs") or {}).get("content") or []
        reason = _reason(first.get("finish_reason"))
        return TokenEvent(text=text, finish_reason=reason, logprobs=[_said(one) for one in told] or None, **counts)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise Broken from error


def _said(one: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(**_likely(one), top=[Likely(**_likely(other)) for other in one.get("top_logprobs") or []])


def _likely(one: dict[str, Any]) -> dict[str, Any]:
    text = str(one["token"])
    return {
        "id": UNKNOWN_ID,
        "token": text,
        "bytes": one.get("bytes") or list(text.encode()),
        "logprob": one["logprob"],
    }


def _reason(told: str | None) -> Literal["stop", "length"] | None:
    """The wire's reason in the product's words; whatever is no limit is an end of the model's own."""
    return None if told is None else "length" if told == "length" else "stop"


def _kept(event: TokenEvent) -> dict[str, Any]:
    return event.model_dump(include={"finish_reason", "prompt_tokens", "completion_tokens"}, exclude_none=True)
