"""Asks for questions and answers about a passage: an OpenAI-compatible endpoint, or a model of the product."""

import re
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
import orjson

from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.core import addresses
from app.core.errors import Invalid, Unavailable
from app.inference import client
from app.inference.targets import Target

READ_S = 180.0
LONGEST_ANSWER_TOKENS = 1500
ANSWER_LIMIT_BYTES = 2_000_000
_Q, _A = r"\s*(?:\d+[.)]\s*)?(?:Q|Question)\s*:", r"\s*(?:A|Answer)\s*:"
_LINES = re.compile(rf"(?:^|\n){_Q}\s*(.+?)\s*\n+{_A}\s*(.+?)(?=\n{_Q}|\Z)", re.S | re.I)


@dataclass(frozen=True)
class Endpoint:
    """Where drafts are asked for; `url` ends before /chat/completions."""

    url: str
    model: str
    key: str


def prompt(passage: str, heading: str, pairs: int) -> str:
    """What is asked. The passage stands last, so that nothing in it comes after what to do."""
    under = f"It stands under: {heading}\n" if heading else ""
    return (
        f"Write {pairs} questions that the passage below answers, each with its full answer. Use only what the passage "
        "says. Write in the language of the passage. Each question must be understandable without the passage. "
        'Give JSON only, in this form: [{"question": "…", "answer": "…"}]\n'
        f"{under}\nPassage:\n{passage}"
    )


def ask(where: Endpoint | Target, text: str) -> str:
    """The answer as text. Raises Unavailable when nobody answers, Invalid with what a refusing endpoint said."""
    if isinstance(where, Target):
        sampling = Sampling(temperature=0.3, max_tokens=LONGEST_ANSWER_TOKENS)
        said = {"messages": [Message(role="user", content=text)]} if where.is_chat else {"prompt": text}
        return client.answer(client.request_for(where, sampling, **said)).text
    body = {
        "model": where.model, "messages": [{"role": "user", "content": text}], "temperature": 0.3,
        "max_tokens": LONGEST_ANSWER_TOKENS,
    }  # fmt: skip
    headers = {"authorization": f"Bearer {where.key}"} if where.key else {}
    try:
        with addresses.client(is_wanted=lambda: True) as http:
            timeout = httpx.Timeout(READ_S, connect=addresses.CONNECT_S)
            answer = http.post(f"{where.url.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=timeout)
    except (httpx.TransportError, httpcore.ConnectError) as error:
        is_closed = isinstance(error.__cause__, addresses.Forbidden) or isinstance(error, addresses.Forbidden)
        if is_closed or "not a public address" in str(error):
            raise Invalid(
                "This endpoint is at a private address, which is not asked. The operator can open its network with "
                "GPT_BUILDER_FETCH_NETWORKS."
            ) from error
        raise Unavailable("The endpoint did not answer. Check its address and try to go on.") from error
    if answer.status_code in (429, 500, 502, 503, 504):
        raise Unavailable(f"The endpoint is busy or broken (it answered {answer.status_code}). Go on later.")
    if answer.status_code != 200:
        raise Invalid(f"The endpoint refused ({answer.status_code}): {_said(answer)} Check its address, model and key.")
    try:
        content = orjson.loads(answer.content[:ANSWER_LIMIT_BYTES])["choices"][0]["message"]["content"]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise Invalid("The endpoint did not answer as OpenAI does. Check that its address ends in /v1.") from error
    return content if isinstance(content, str) else ""


def _said(answer: httpx.Response) -> str:
    try:
        found = orjson.loads(answer.content)["error"]["message"]
        return f"“{str(found)[:200]}”."
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def pairs_in(text: str) -> list[tuple[str, str]]:
    """Questions with their answers in what a model wrote: JSON wherever it stands (a list, one object, or an object a
    line), or lines of Q: and A:."""
    found = [(r.get("question"), r.get("answer")) for r in _objects_in(text)]
    pairs = [(q.strip(), a.strip()) for q, a in found if isinstance(q, str) and isinstance(a, str)]
    if pairs := [(q, a) for q, a in pairs if q and a]:
        return pairs
    return [(q.strip(), a.strip()) for q, a in _LINES.findall(text)]


def _objects_in(text: str) -> list[dict[str, Any]]:
    """The objects of the list in a text; where there is none, one object, or those that stand on lines of their own."""
    spans = [text[text.find(a) : text.rfind(b) + 1] for a, b in ("[]", "{}")]
    for several in ([spans[0]], [spans[1]], text.splitlines()):
        read = []
        for piece in several:
            try:
                read.append(orjson.loads(piece))
            except orjson.JSONDecodeError:
                continue
        rows = read[0] if len(read) == 1 and isinstance(read[0], list) else read
        if objects := [row for row in rows if isinstance(row, dict)]:
            return objects
    return []
