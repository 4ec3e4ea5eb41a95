"""Chat logs: lines or messages become conversations, parted where nobody spoke for half an hour."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from app.datasets.findings import Problem, Record
from app.datasets.options import ReadOptions
from app.datasets.reading.chat_lines import ASSISTANTS, Said, read_said
from app.datasets.reading.context import Context
from app.datasets.reading.sniffed import Sniffed

SPEAKERS_SHOWN = 40
CONVERSATION_LIMIT_TURNS = 400


@dataclass
class _Talk:
    """What was said without a long silence."""

    start: int
    said: list[Said]


def read_chat(path: Path, sniffed: Sniffed, options: ReadOptions, context: Context) -> Iterator[Record | Problem]:
    """One record a conversation with its `messages`; the chosen speaker is the assistant, all others the user."""
    likely = _assistant(path, sniffed, context)
    assistant = options.assistant or likely
    gap = timedelta(minutes=options.gap_minutes)
    talk: _Talk | None = None
    last: datetime | None = None
    for found in read_said(path, sniffed):
        if isinstance(found, Problem):
            yield found
            continue
        is_new = found.is_first or (last is not None and found.at is not None and abs(found.at - last) > gap)
        if talk is not None and (is_new or len(talk.said) >= CONVERSATION_LIMIT_TURNS):
            yield _record(talk, assistant)
            talk = None
        talk = talk or _Talk(found.line, [])
        talk.said.append(found)
        last = found.at or last
    if talk is not None:
        yield _record(talk, assistant)


def _assistant(path: Path, sniffed: Sniffed, context: Context) -> str:
    """The speaker that is most likely the one to learn from: a known word for it, else who speaks most after others.

    Fills in the speakers to choose from, most turns first.
    """
    turns, answers = Counter[str](), Counter[str]()
    before = ""
    for found in read_said(path, sniffed):
        if isinstance(found, Said):
            turns[found.speaker] += 1
            answers[found.speaker] += bool(before) and before != found.speaker
            before = found.speaker
    context.facts["speakers"] = [name for name, _count in turns.most_common(SPEAKERS_SHOWN)]
    known = next((name for name in turns if name.lower() in ASSISTANTS or name.lower().endswith("bot")), "")
    chosen = known or (answers.most_common(1)[0][0] if answers else "")
    context.facts["assistant"] = [chosen] if chosen else []
    return chosen


def _record(talk: _Talk, assistant: str) -> Record:
    """Turns of one speaker in a row are one message; several users are told apart by their names."""
    others = {said.speaker for said in talk.said if said.speaker != assistant}
    messages: list[dict[str, Any]] = []
    for said in talk.said:
        role = "assistant" if said.speaker == assistant else "user"
        text = f"{said.speaker}: {said.text}" if role == "user" and len(others) > 1 else said.text
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + text
        else:
            messages.append({"role": role, "content": text})
    at = talk.said[0].at
    values: dict[str, Any] = {"messages": messages, "speakers": ", ".join(sorted({s.speaker for s in talk.said}))}
    if at is not None and at.year > 1:
        values["began"] = at.isoformat(" ", "minutes")
    return Record(talk.start, values)
