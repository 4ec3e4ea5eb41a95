"""Whole conversations from messages that each name the one they answer (OASST and its like)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Record
from app.datasets.turns import role_of, text_of, turn_parts

OWN, PARENT = ("message_id", "messageId", "id"), ("parent_id", "parentId", "reply_to", "in_reply_to")
DEPTH_LIMIT = 200


def joined(records: Iterable[Record | Problem]) -> Iterator[Record | Problem]:
    """One record for each conversation that ends with an answer nobody went on from; problems pass through.

    Conversations that share their beginning share their question, so the split keeps them together. The other columns
    are those of the last answer. Every message that is part of no conversation comes back as a problem. Holds all
    messages in memory.
    """
    messages: dict[str, Record] = {}
    for found in records:
        if isinstance(found, Problem):
            yield found
            continue
        own = _first(found.values, OWN)
        if own and own not in messages and turn_parts(found.values):
            messages[own] = found
        else:
            yield _aside(found, "value.unreadable")
    parents = {own: _first(record.values, PARENT) for own, record in messages.items()}
    replies = Counter(parent for parent in parents.values() if parent)
    unanswered = [own for own in messages if not replies[own] and not _is_answer(messages[own])]
    while unanswered:
        own = unanswered.pop()
        yield _aside(messages[own], "thread.unanswered")
        parent = parents[own]
        replies[parent] -= 1
        del messages[own]
        if parent in messages and not replies[parent] and not _is_answer(messages[parent]):
            unanswered.append(parent)
    used: set[str] = set()
    for own in messages:
        path = _path(own, messages, parents) if not replies[own] else None
        if path is not None:
            used.update(path)
            yield _conversation([messages[step] for step in path])
    for own, record in messages.items():
        if own not in used:
            yield _aside(record, "thread.no_parent")


def _path(own: str, messages: dict[str, Record], parents: dict[str, str]) -> list[str] | None:
    """From the first message to this one, or None when one is missing or they go round in a circle."""
    path = [own]
    while parents[path[-1]]:
        parent = parents[path[-1]]
        if parent not in messages or len(path) >= DEPTH_LIMIT:
            return None
        path.append(parent)
    return path[::-1]


def _conversation(path: list[Record]) -> Record:
    turns = []
    for record in path:
        parts = turn_parts(record.values)
        assert parts is not None
        turns.append({"role": parts[0], "content": parts[1]})
    last = path[-1].values
    rest = {k: v for k, v in last.items() if k not in (*OWN, *PARENT, "role", "text", "content", "replies")}
    return Record(path[0].row, {"messages": turns, "answer_id": _first(last, OWN), **rest})


def _is_answer(record: Record) -> bool:
    parts = turn_parts(record.values)
    return parts is not None and role_of(parts[0], {}) == "assistant"


def _first(values: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((text_of(values[name]) for name in names if values.get(name) not in (None, "")), "")


def _aside(record: Record, code: str) -> Problem:
    raw = text_of(record.values.get("text") or record.values.get("content")).encode("utf-8", "replace")
    return Problem(record.row, code, raw[:RAW_LIMIT_BYTES])
