"""From a row of columns to a training example: a stored mapping, applied the same in preview and in freezing."""

import re
from collections.abc import Mapping as Values
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.conversation import Role

Shape = Literal["messages", "pair", "label", "text"]
_PLACE = re.compile(r"\{([^{}]{1,200})\}")
_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
ROLES: dict[str, Role] = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "client": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "ai": "assistant", "agent": "assistant", "answer": "assistant", "function_call": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip


class Mapping(Contract):
    """Which columns become what. Text fields are templates: `{column}` stands for a cell, all else for itself."""

    shape: Shape = "pair"
    messages: str = Field("", max_length=200, description="column that holds the turns")
    roles: dict[str, Role] = Field(default_factory=dict, description="the file's own names of speakers")
    history: str = Field("", max_length=200, description="column with earlier turns as pairs (Alpaca)")
    system: str = Field("", max_length=8000)
    prompt: str = Field("", max_length=8000)
    answer: str = Field("", max_length=8000)
    text: str = Field("", max_length=8000)
    label: str = Field("", max_length=200, description="column by which the split is balanced")


class Mapped(NamedTuple):
    """`example` is None when the row cannot be used; `codes` say why, or what was put right."""

    example: dict[str, Any] | None
    codes: tuple[str, ...] = ()


def columns_of(mapping: Mapping) -> set[str]:
    """The columns that the mapping uses; all others are kept as metadata."""
    named = {mapping.messages, mapping.history, mapping.label}
    for template in (mapping.system, mapping.prompt, mapping.answer, mapping.text):
        named.update(_PLACE.findall(template))
    return {name for name in named if name}


def column(name: str) -> str:
    """The template that stands for one column."""
    return "{" + name + "}" if name else ""


def text_of(value: Any) -> str:
    """A cell as text: content of a turn object, parts of a list, JSON for what has no text of its own."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        for key in _CONTENT_KEYS:
            if isinstance(value.get(key), str | list):
                return text_of(value[key])
        return orjson.dumps(value).decode()
    if isinstance(value, list):
        if value and all(isinstance(part, dict) and "type" in part for part in value):
            return "".join(text_of(part.get("text")) for part in value)
        return "\n".join(text_of(part) for part in value)
    return str(value)


def folded_name(name: str) -> str:
    """Column names compared without case, spaces, `_` and `-`."""
    return re.sub(r"[\s_\-]", "", name).casefold()


def render(template: str, values: Values[str, Any]) -> str:
    """Fill a template. A blank cell leaves no blank paragraph behind; unknown names stay as they are."""
    if not template:
        return ""
    known = dict(values)

    def cell(match: re.Match[str]) -> str:
        name = match.group(1)
        return text_of(known[name]) if name in known else match.group(0)

    alone = _PLACE.fullmatch(template)
    filled = _PLACE.sub(cell, template)
    if alone:
        return text_of(known[alone.group(1)]) if alone.group(1) in known else ""
    return re.sub(r"\n{3,}", "\n\n", filled).strip()


def turns_of(value: Any) -> list[dict[str, Any]] | None:
    """The turns in a cell (a list of objects, or such a list as JSON text), or None."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return None
    return value


def turn_parts(turn: dict[str, Any]) -> tuple[str, str] | None:
    """(speaker as written, content) of one turn object, or None when it is not a turn."""
    role_key = next((k for k in _ROLE_KEYS if isinstance(turn.get(k), str)), None)
    content_key = next((k for k in _CONTENT_KEYS if k in turn and k != role_key), None)
    if role_key is None or (content_key is None and not turn.get("tool_calls")):
        return None
    content = text_of(turn.get(content_key)) if content_key else ""
    if not content and turn.get("tool_calls"):
        content = orjson.dumps(turn["tool_calls"]).decode()
    return turn[role_key], content


def role_of(speaker: str, roles: Values[str, Role]) -> Role | None:
    """Who speaks: the mapping's own names first, then the usual ones."""
    return roles.get(speaker) or ROLES.get(speaker.strip().casefold())


def apply(values: Values[str, Any], mapping: Mapping) -> Mapped:
    """One row mapped. The example has kind, messages, text, label and meta (every other column, unchanged)."""
    used = columns_of(mapping)
    meta = {k: v for k, v in values.items() if k not in used and v not in (None, "")}
    label = text_of(values.get(mapping.label)) if mapping.label else ""
    if mapping.shape == "text":
        text = render(mapping.text, values)
        if not text.strip():
            return Mapped(None, ("map.empty",))
        return Mapped({"kind": "text", "messages": [], "text": text, "label": label, "meta": meta})
    if mapping.shape == "messages":
        messages, codes = _conversation(values, mapping)
    else:
        messages, codes = _pair(values, mapping)
    if messages is None:
        return Mapped(None, codes)
    return Mapped({"kind": "chat", "messages": messages, "text": "", "label": label, "meta": meta}, codes)


def _message(role: str, content: str, train: bool = True) -> dict[str, Any]:
    return {"role": role, "content": content, "train": train}


def _pair(values: Values[str, Any], mapping: Mapping) -> tuple[list[dict[str, Any]] | None, tuple[str, ...]]:
    prompt, answer = render(mapping.prompt, values), render(mapping.answer, values)
    if not prompt.strip() and not answer.strip():
        return None, ("map.empty",)
    # An empty side is kept here: the missing-values step counts it, shows it and takes it out.
    messages = []
    if system := render(mapping.system, values).strip():
        messages.append(_message("system", system))
    for earlier in _history(values.get(mapping.history)) if mapping.history else []:
        messages += [_message("user", earlier[0]), _message("assistant", earlier[1])]
    messages += [_message("user", prompt), _message("assistant", answer)]
    codes = () if prompt.strip() and answer.strip() else ("map.no_prompt" if answer.strip() else "map.no_answer",)
    return messages, codes


def _history(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return []
    if not isinstance(value, list):
        return []
    return [(text_of(pair[0]), text_of(pair[1])) for pair in value if isinstance(pair, list) and len(pair) == 2]


def _conversation(values: Values[str, Any], mapping: Mapping) -> tuple[list[dict[str, Any]] | None, tuple[str, ...]]:
    turns = turns_of(values.get(mapping.messages))
    if turns is None:
        return None, ("map.empty",)
    codes: list[str] = []
    messages: list[dict[str, Any]] = []
    if system := render(mapping.system, values).strip():
        messages.append(_message("system", system))
    for turn in turns:
        parts = turn_parts(turn)
        role = role_of(parts[0], mapping.roles) if parts else None
        if parts is None or role is None:
            return None, ("role.unknown",)
        if role == "system" and messages and messages[0]["role"] == "system":
            messages[0]["content"] = parts[1] or messages[0]["content"]
            continue
        train = turn.get("train", True) is not False and turn.get("weight", 1) != 0
        if not parts[1].strip():
            codes.append("turn.empty")
        elif messages and messages[-1]["role"] == role and role != "tool":
            codes.append("turn.same_role")
            messages[-1]["content"] += "\n" + parts[1]
        else:
            messages.append(_message(role, parts[1], train))
    if answer := render(mapping.answer, values).strip():
        messages.append(_message("assistant", answer))
    first = next((m for m in messages if m["role"] != "system"), None)
    if first and first["role"] == "assistant":
        codes.append("turn.starts_with_assistant")
        first["train"] = False
    if not any(m["role"] == "assistant" and m["train"] for m in messages):
        return None, (*codes, "turn.no_assistant")
    return messages, tuple(dict.fromkeys(codes))
