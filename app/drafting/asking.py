"""Asks for questions and answers about a passage: an OpenAI-compatible endpoint, or a model of the product."""

import re
from collections.abc import Callable
from typing import Any

import orjson

from app.contracts.conversation import Message
from app.contracts.generation import Sampling, Waiting
from app.core.errors import Invalid
from app.externals.asking import Endpoint, answered
from app.inference import client
from app.inference.patience import patiently
from app.inference.targets import Target

LONGEST_ANSWER_TOKENS = 1500
_Q, _A = r"\s*(?:\d+[.)]\s*)?(?:Q|Question)\s*:", r"\s*(?:A|Answer)\s*:"
_LINES = re.compile(rf"(?:^|\n){_Q}\s*(.+?)\s*\n+{_A}\s*(.+?)(?=\n{_Q}|\Z)", re.S | re.I)


def prompt(passage: str, heading: str, pairs: int) -> str:
    """What is asked. The passage stands last, so that nothing in it comes after what to do."""
    under = f"It stands under: {heading}\n" if heading else ""
    return (
        f"Write {pairs} questions that the passage below answers, each with its full answer. Use only what the passage "
        "says. Write in the language of the passage. Each question must be understandable without the passage. "
        'Give JSON only, in this form: [{"question": "…", "answer": "…"}]\n'
        f"{under}\nPassage:\n{passage}"
    )


def ask(
    where: Endpoint | Target,
    text: str,
    is_wanted: Callable[[], bool],
    told: Callable[[Waiting], None] = lambda waiting: None,
) -> str:
    """The answer as text. `told` hears what a model of the product waits for, and may give up by raising.

    Raises Unavailable when nobody answers, or nobody wants it any more; Invalid with what a refusing endpoint said, or
    where the model cannot read so much."""
    sampling = Sampling(temperature=0.3, max_tokens=LONGEST_ANSWER_TOKENS)
    messages = [Message(role="user", content=text)]
    if isinstance(where, Endpoint):
        return answered(where, sampling, messages, is_wanted).text
    said = {"messages": messages} if where.is_chat else {"prompt": text}
    try:
        return patiently(lambda heard: client.answer(client.request_for(where, sampling, **said), heard), told).text
    except Invalid as error:
        advice = "A piece of the document is asked about as a whole: choose a smaller longest piece and draft again."
        raise Invalid(f"{error.sentence} {advice}") from error


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
