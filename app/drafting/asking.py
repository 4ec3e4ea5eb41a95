"""Asks for questions and answers about a passage: an OpenAI-compatible endpoint, or a model of the product."""

import re
from dataclasses import dataclass

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
_LINES = re.compile(r"(?:^|\n)\s*(?:\d+[.)]\s*)?(?:Q|Question)\s*:\s*(.+?)\s*\n+\s*(?:A|Answer)\s*:\s*(.+?)(?=\n\s*(?:\d+[.)]\s*)?(?:Q|Question)\s*:|\Z)", re.S | re.I)  # fmt: skip  # noqa: E501


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
        with addresses.client() as http:
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
    """Questions with their answers in what a model wrote: JSON wherever it stands, or lines of Q: and A:."""
    start, end = text.find("["), text.rfind("]")
    if 0 <= start < end:
        try:
            rows = orjson.loads(text[start : end + 1])
        except orjson.JSONDecodeError:
            rows = []
        found = [(r.get("question"), r.get("answer")) for r in rows if isinstance(r, dict)]
        pairs = [(q.strip(), a.strip()) for q, a in found if isinstance(q, str) and isinstance(a, str)]
        if pairs := [(q, a) for q, a in pairs if q and a]:
            return pairs
    return [(q.strip(), a.strip()) for q, a in _LINES.findall(text)]
