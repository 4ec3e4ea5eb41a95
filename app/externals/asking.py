"""Asks an external model: words as they come, or a sentence that says why there are none and what to do."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx
import orjson

from app.contracts.conversation import Message
from app.contracts.generation import Sampling, TokenEvent
from app.core import addresses
from app.core.errors import AppError, Invalid, Unavailable
from app.externals import wire

log = logging.getLogger(__name__)
READ_S = 120.0  # the longest silence of a model that is thinking
LONGEST_S = 900.0
TRIAL_S = 30.0
HEARTBEAT_S = 5.0
REFUSAL_BYTES = 20_000
MOST_TRIES = 5
ASK_AGAIN_S = 5.0  # after trouble that the server does not tell the length of
PATIENCE_S = 60.0  # in all, for one question that nobody sits and waits for
MOST_QUESTIONS = 4  # the same one, since each may cost money
SHOWN_MODELS = 8
TRIAL = [Message(role="user", content="Say hello.")]


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers; `url` ends before /chat/completions."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        """Who gets to read what is asked."""
        return urlsplit(self.url).netloc

    @property
    def headers(self) -> dict[str, str]:
        """With the key, where there is one."""
        return {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})


def stream(endpoint: Endpoint, sampling: Sampling, messages: list[Message]) -> Generator[TokenEvent]:
    """Events of one answer, as the model server gives them: a sign of life every few seconds, the last one with a
    finish_reason. What goes wrong is told in that one, too. Closing it hangs up."""
    told: queue.Queue[TokenEvent] = queue.Queue()
    is_over = threading.Event()

    def read() -> None:
        try:
            for event in _asked(endpoint, sampling, messages, lambda: not is_over.is_set(), READ_S):
                told.put(event)
        except AppError as error:
            kind = "refused" if isinstance(error, Invalid) else "busy"
            told.put(TokenEvent(finish_reason="error", error=error.sentence, error_kind=kind))
        except Exception:
            log.exception("an external model could not be asked")
            sentence = f"The answer of {endpoint.host} could not be read. The log says why."
            told.put(TokenEvent(finish_reason="error", error=sentence, error_kind="failed"))

    threading.Thread(target=read, name="external", daemon=True).start()
    try:
        while True:
            try:
                event = told.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                event = TokenEvent()
            yield event
            if event.finish_reason:
                return
    finally:
        is_over.set()


@dataclass(frozen=True)
class Trial:
    """What a model said when it was tried, and after how long."""

    reply: str
    total_s: float


def tried(endpoint: Endpoint) -> Trial:
    """Ask a short question. Raises Invalid with the field to look at, Unavailable when the server is busy."""
    give_up_at = time.monotonic() + TRIAL_S
    began, said = time.monotonic(), ""
    for event in _asked(
        endpoint, Sampling(temperature=0, max_tokens=16), TRIAL, lambda: time.monotonic() < give_up_at, TRIAL_S
    ):
        said += event.text
    return Trial(said.strip(), time.monotonic() - began)


def answered(
    endpoint: Endpoint, sampling: Sampling, messages: list[Message], is_wanted: Callable[[], bool]
) -> TokenEvent:
    """One whole answer, for work in the background: a busy server is asked again when it says, for up to a minute.

    Raises Invalid for what asking again does not help, Unavailable when it stays busy or nobody wants it any more.
    """
    give_up_at, times_asked = time.monotonic() + PATIENCE_S, 0
    while True:
        times_asked += 1
        try:
            said, last = "", TokenEvent()
            for last in _asked(endpoint, sampling, messages, is_wanted, READ_S):
                said += last.text
            return last.model_copy(update={"text": said})
        except Unavailable as error:
            again_at = time.monotonic() + error.retry_after_s
            if times_asked == MOST_QUESTIONS or again_at > give_up_at or not _waited(again_at, is_wanted):
                raise


def _waited(until: float, is_wanted: Callable[[], bool]) -> bool:
    """Wait; whether the answer is still wanted then."""
    while is_wanted() and (left := until - time.monotonic()) > 0:
        time.sleep(min(0.2, left))
    return is_wanted()


def _asked(
    endpoint: Endpoint, sampling: Sampling, messages: list[Message], is_wanted: Callable[[], bool], read_s: float
) -> Iterator[TokenEvent]:
    """Raises Invalid and Unavailable, each with a sentence."""
    asked, began = wire.body(endpoint.model, messages, sampling), time.monotonic()
    url, timeout = f"{endpoint.url}/chat/completions", httpx.Timeout(read_s, connect=addresses.CONNECT_S)

    def is_in_time() -> bool:
        return is_wanted() and time.monotonic() < began + LONGEST_S

    try:
        with addresses.client(is_in_time) as http:
            for _attempt in range(MOST_TRIES):
                content = orjson.dumps(asked)
                with http.stream("POST", url, content=content, headers=endpoint.headers, timeout=timeout) as answer:
                    if answer.status_code == 200:
                        yield from _told(endpoint, answer, began)
                        return
                    said, status = wire.said_in(_read(answer)), answer.status_code
                    again = wire.adapted(asked, said) if status in (400, 422) else None
                    wait_s = answer.headers.get("retry-after", "")
                if again is None:
                    raise _refused(endpoint, http, status, said, wait_s)
                asked = again
            raise _refused(endpoint, http, status, said, wait_s)
    except (httpx.TransportError, httpcore.NetworkError) as error:
        raise unreachable(endpoint, error) from error
    except wire.Broken as error:
        raise Invalid(fields={"url": _strange(endpoint)}) from error


def _told(endpoint: Endpoint, answer: httpx.Response, began: float) -> Iterator[TokenEvent]:
    """The events of a good answer, with the times as they are here."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise wire.Broken
    first_token_s: float | None = None
    try:
        for event in _events(answer):
            if event.text and first_token_s is None:
                first_token_s = time.monotonic() - began
            if event.finish_reason:
                times = {"first_token_s": first_token_s, "total_s": time.monotonic() - began}
                yield event.model_copy(update=times)
                return
            yield event
    except wire.Failed as error:
        words = f": “{error}”" if str(error) else "."
        raise Unavailable(f"{endpoint.host} stopped in the middle of its answer{words} Try again.") from error
    except (httpx.RemoteProtocolError, httpx.ReadError) as error:
        log.info("external model: %s", error)
    cut = f"The connection to {endpoint.host} was cut in the middle of the answer. What had come is kept. Try again."
    raise Unavailable(cut)


def _events(answer: httpx.Response) -> Iterator[TokenEvent]:
    found = wire.lines(answer.iter_raw())
    if "text/event-stream" in answer.headers.get("content-type", ""):
        yield from wire.events(found)
        return
    # A server that does not stream gives the whole at once.
    whole = wire.event_of(wire.loaded(b"\n".join(found)))
    yield TokenEvent(text=whole.text, logprobs=whole.logprobs)
    yield whole.model_copy(update={"text": "", "logprobs": None, "finish_reason": whole.finish_reason or "stop"})


def _read(answer: httpx.Response) -> bytes:
    """The beginning of a refusal."""
    found = b""
    for piece in answer.iter_raw():
        found += piece
        if len(found) > REFUSAL_BYTES:
            break
    return found


def _refused(endpoint: Endpoint, http: httpx.Client, status: int, said: str, wait_s: str) -> AppError:
    """A bad status in words, and which field has to do with it."""
    host, words = endpoint.host, f" It says: “{said}”." if said else ""
    if status in (401, 403):
        what = "did not accept the key" if endpoint.key else "wants a key"
        return Invalid(fields={"key": f"{host} {what} ({status}).{words} Enter a key that may use this model."})
    if status == 404:
        if offered := _offered(endpoint, http):
            names = ", ".join(offered[:SHOWN_MODELS]) + (", …" if len(offered) > SHOWN_MODELS else "")
            return Invalid(fields={"model": f"{host} knows no model “{endpoint.model}” (404). It offers: {names}."})
        return Invalid(fields={"url": f"{host} has nothing at this address (404).{words} Most end in /v1."})
    if status == 429:
        why = "too many, or the quota is used up"
        when = f"in {wait_s} seconds" if wait_s.isdigit() else "later"
        sentence = f"{host} takes no more questions just now (429): {why}.{words} Try again {when}."
        return Unavailable(sentence, retry_after_s=_seconds(wait_s))
    if status >= 500:
        sentence = f"{host} has trouble of its own ({status}).{words} Try again later."
        return Unavailable(sentence, retry_after_s=_seconds(wait_s))
    if 300 <= status < 400:
        where = f"sends us on to another address ({status}), which is not followed"
        return Invalid(fields={"url": f"{host} {where}. Enter that address."})
    return Invalid(fields={"url": f"{host} refused the question ({status}).{words} Check address and model."})


def _seconds(told: str) -> float:
    """What a retry-after asks to wait; a usual time where it says nothing, or a date."""
    return float(told) if told.isdigit() else ASK_AGAIN_S


def _offered(endpoint: Endpoint, http: httpx.Client) -> list[str]:
    """The ids of the server's models; none where it does not tell."""
    try:
        with http.stream("GET", f"{endpoint.url}/models", headers=endpoint.headers) as answer:
            if answer.status_code != 200:
                return []
            found: Any = wire.loaded(b"".join(wire.lines(answer.iter_raw()))).get("data")
    except (httpx.TransportError, httpcore.NetworkError, wire.Broken):
        return []
    listed = found if isinstance(found, list) else []
    return [str(one["id"])[:100] for one in listed if isinstance(one, dict) and one.get("id")]


def unreachable(endpoint: Endpoint, error: Exception) -> AppError:
    """A connection that failed, in words."""
    host = endpoint.host
    if addresses.is_refusal(error):
        way = "Whoever runs this installation can open its network with GPT_BUILDER_FETCH_NETWORKS."
        return Invalid(fields={"url": f"{host} is at a private address, which is not asked. {way}"})
    if isinstance(error, httpx.TimeoutException) or addresses.UNWANTED in str(error):
        return Unavailable(f"{host} did not answer in time. Try again, or check the address.")
    if "CERTIFICATE" in str(error).upper():
        return Invalid(fields={"url": f"{host} has no certificate that can be trusted. Ask whoever runs it."})
    if "SSL" in str(error).upper():
        return Invalid(fields={"url": f"{host} does not speak https here. Try the address with http://."})
    return Unavailable(f"{host} cannot be reached. Check the address, and that it is running.")


def _strange(endpoint: Endpoint) -> str:
    where = "Check that the address ends where /chat/completions begins, as in https://api.example.org/v1."
    return f"{endpoint.host} did not answer as OpenAI does. {where}"
