"""What a cell says about a conversation: its turns, who speaks, the text, the tools that are called."""

import re
from collections.abc import Mapping as Values
from typing import Any

import orjson

from app.contracts.conversation import Role

Message = dict[str, Any]
_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
# Spellings of the formats in use: OpenAI, ShareGPT, OASST, Taskmaster, LLaMA-Factory.
ROLES: dict[str, Role] = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "client": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "ai": "assistant", "agent": "assistant", "answer": "assistant", "bard": "assistant", "bing": "assistant",
    "function_call": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_TRANSCRIPT = re.compile(r"(?:\A|\n)\s*(Human|Assistant|User|System):[ \t]?")
_DEPTH_LIMIT = 200


def text_of(value: Any) -> str:
    """A cell as text: content of a turn object, parts of a list, JSON for what has no text of its own."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        if isinstance(value.get("text"), list) and "answer_start" in value:
            # SQuAD: several markings of one answer; none for a question without an answer.
            return next((text_of(text) for text in value["text"] if text), "")
        for key in _CONTENT_KEYS:
            if isinstance(value.get(key), str | list):
                return text_of(value[key])
        return orjson.dumps(value).decode()
    if isinstance(value, list):
        if value and all(isinstance(part, dict) and "type" in part for part in value):
            return "".join(text_of(part.get("text")) for part in value)
        return "\n".join(text_of(part) for part in value)
    return str(value)


def parsed(value: Any) -> Any:
    """The value behind a cell of JSON text; any other cell as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def turns_of(value: Any, *, are_texts_turns: bool = False) -> list[dict[str, Any]] | None:
    """The turns in a cell, or None: a list of objects (also as JSON text), a tree of replies, a transcript.

    `are_texts_turns`: a list of plain texts is a conversation in which user and assistant take turns.
    """
    value = parsed(value)
    if isinstance(value, str):
        return transcript(value)
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            value = value["messages"]
        elif isinstance(value.get("replies"), list):
            value = _best_thread(value)
    if not isinstance(value, list) or not value:
        return None
    if are_texts_turns and len(value) > 1 and all(isinstance(text, str) for text in value):
        return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(value)]
    return value if all(isinstance(turn, dict) for turn in value) else None


def transcript(text: str) -> list[dict[str, Any]] | None:
    """Turns of a text such as hh-rlhf's ("\\n\\nHuman: … \\n\\nAssistant: …"); None when it does not begin so."""
    marks = list(_TRANSCRIPT.finditer(text))
    if len(marks) < 2 or text[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": mark.group(1).lower(), "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _best_thread(node: dict[str, Any]) -> list[dict[str, Any]]:
    """One way through a tree of replies (OASST): at each turn the best ranked one, else the first."""
    turns: list[dict[str, Any]] = []
    while len(turns) < _DEPTH_LIMIT:
        turns.append(node)
        replies = [r for r in node.get("replies") or [] if isinstance(r, dict)]
        if not replies:
            break
        node = min(replies, key=rank_of)
    return turns


def rank_of(reply: dict[str, Any]) -> float:
    """The reviewers' order of a reply, 0 the best; replies without one come last."""
    rank = reply.get("rank")
    try:
        return float(rank) if rank not in (None, "") else 1e9
    except (TypeError, ValueError):
        return 1e9


def turn_parts(turn: dict[str, Any]) -> tuple[str, str] | None:
    """(speaker as written, content) of one turn object, or None when it is not a turn."""
    role_key = next((k for k in _ROLE_KEYS if isinstance(turn.get(k), str)), None)
    content_key = next((k for k in _CONTENT_KEYS if k in turn and k != role_key), None)
    if role_key is None or (content_key is None and not turn.get("tool_calls")):
        return None
    content = text_of(turn.get(content_key)) if content_key else ""
    if not content and turn.get("tool_calls"):
        # What a template without tools can still learn from.
        content = orjson.dumps(turn["tool_calls"]).decode()
    return turn[role_key], content


def role_of(speaker: str, roles: Values[str, Role]) -> Role | None:
    """Who speaks: the mapping's own names first, then the usual ones."""
    return roles.get(speaker) or ROLES.get(speaker.strip().casefold())


def message(role: str, content: str, train: bool = True, **extras: Any) -> Message:
    """One turn of an example. `extras`: name, tool_calls (JSON), tool_call_id, weight, where the source has them."""
    return {"role": role, "content": content, "train": train, **extras}


def message_of(turn: dict[str, Any], roles: Values[str, Role]) -> Message | None:
    """The turn as a message with all it carries, or None when it is no turn or its speaker is not known.

    `train` is false where the source gives the turn no weight.
    """
    parts = turn_parts(turn)
    role = role_of(parts[0], roles) if parts else None
    if parts is None or role is None:
        return None
    extras: dict[str, Any] = {}
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str) and turn[key]:
            extras[key] = turn[key]
    if calls := _calls(turn, parts[0], parts[1]):
        extras["tool_calls"] = orjson.dumps(calls).decode()
    weight = turn.get("weight")
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        extras["weight"] = float(weight)
    train = turn.get("train", True) is not False and weight != 0
    return message(role, parts[1], train, **extras)


def _calls(turn: dict[str, Any], speaker: str, content: str) -> list[Any] | None:
    """The turn's tool calls; those of a ShareGPT `function_call` in OpenAI's form."""
    if isinstance(turn.get("tool_calls"), list) and turn["tool_calls"]:
        found: list[Any] = turn["tool_calls"]
        return found
    if speaker.strip().casefold() != "function_call":
        return None
    call = parsed(content)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    written = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return [{"type": "function", "function": {"name": call["name"], "arguments": written}}]


def has_other_parts(turn: dict[str, Any]) -> bool:
    """Whether the turn's content has parts that are no text (pictures, sound, files)."""
    content = turn.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and "type" in part and part["type"] not in ("text", "input_text", "output_text")
        for part in content
    )
