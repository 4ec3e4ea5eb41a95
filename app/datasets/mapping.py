"""From a row of columns to a training example: a stored mapping, applied the same in preview and in freezing."""

import re
from collections.abc import Mapping as Values
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.conversation import Role
from app.datasets.turns import (
    Message,
    has_other_parts,
    message,
    message_of,
    parsed,
    text_of,
    turn_parts,
    turns_of,
)

Shape = Literal["messages", "pair", "preference", "rated", "label", "text"]
Repair = Literal["", "out", "join", "last", "context", "drop", "learn"]
_PLACE = re.compile(r"\{([^{}]{1,200})\}")
GOOD = ("true", "1", "yes", "good", "up", "thumbs_up", "desirable", "chosen", "positive", "👍")
BAD = ("false", "0", "no", "bad", "down", "thumbs_down", "undesirable", "rejected", "negative", "-1", "👎")
# What a person may choose for a row check; the first is what happens by itself.
REPAIRS: dict[str, tuple[Repair, ...]] = {
    "turn.starts_with_assistant": ("context", "drop", "out"),
    "turn.same_role": ("join", "last", "out"),
    "turn.empty": ("drop", "out"),
    "role.unknown": ("out", "drop"),
    "pair.equal": ("out", "learn"),
}


class Mapping(Contract):
    """Which columns become what. Text fields are templates: `{column}` stands for a cell, all else for itself."""

    shape: Shape = "pair"
    cell: str = Field("", max_length=200, description="column whose JSON object holds the columns that are meant")
    messages: str = Field("", max_length=200, description="column that holds the turns")
    roles: dict[str, Role] = Field(default_factory=dict, description="the file's own names of speakers")
    history: str = Field("", max_length=200, description="column with earlier turns as pairs (Alpaca)")
    system: str = Field("", max_length=8000)
    prompt: str = Field("", max_length=8000)
    answer: str = Field("", max_length=8000)
    text: str = Field("", max_length=8000)
    chosen: str = Field("", max_length=200, description="column with the better answer, or the whole conversation")
    rejected: str = Field("", max_length=200, description="column with the worse answer, or the whole conversation")
    rating: str = Field("", max_length=200, description="column that says whether the answer was good (KTO)")
    label: str = Field("", max_length=200, description="column by which the split is balanced")
    repairs: dict[str, Repair] = Field(default_factory=dict, description="row check to what is done about it")


class Mapped(NamedTuple):
    """`example` is None when the row cannot be used; `codes` say why, or what was put right."""

    example: dict[str, Any] | None
    codes: tuple[str, ...] = ()


class _Unusable(Exception):
    """The row cannot become an example; the arguments are its codes."""


def is_usable(mapped: Mapped) -> bool:
    """Whether something can be learned from the row."""
    return mapped.example is not None and not {"map.no_answer", "map.no_prompt"} & set(mapped.codes)


def columns_of(mapping: Mapping) -> set[str]:
    """The columns that the mapping uses; all others are kept as metadata."""
    if mapping.cell:
        return {mapping.cell}
    return _named(mapping)


def _named(mapping: Mapping) -> set[str]:
    named = {
        mapping.messages, mapping.history, mapping.label, mapping.chosen, mapping.rejected, mapping.rating,
    }  # fmt: skip
    for template in (mapping.system, mapping.prompt, mapping.answer, mapping.text):
        named.update(_PLACE.findall(template))
    return {name for name in named if name}


def column(name: str) -> str:
    """The template that stands for one column."""
    return "{" + name + "}" if name else ""


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


def apply(values: Values[str, Any], mapping: Mapping) -> Mapped:
    """One row mapped. The example has kind, messages, text, chosen, rejected, label and meta (all other columns).

    A row of preferences is a conversation that ends with the chosen answer; `chosen` and `rejected` hold the turns
    in which the two differ. A rated row (KTO) has one of the two; a bad answer is kept, and never learned by itself.
    """
    if mapping.cell:
        inner = parsed(values.get(mapping.cell))
        outer = {k: v for k, v in values.items() if k != mapping.cell}
        values = {**outer, **inner} if isinstance(inner, dict) else outer
    used = _named(mapping)
    meta = {k: v for k, v in values.items() if k not in used and v not in (None, "")}
    label = text_of(values.get(mapping.label)) if mapping.label else ""
    example: dict[str, Any] = {
        "kind": "chat", "messages": [], "text": "", "chosen": [], "rejected": [], "label": label, "meta": meta,
    }  # fmt: skip
    codes: list[str] = []
    try:
        match mapping.shape:
            case "text":
                text = render(mapping.text, values)
                if not text.strip():
                    raise _Unusable("map.empty")
                example.update(kind="text", text=text)
            case "preference":
                example.update(_preference(values, mapping, codes))
            case "rated":
                example.update(_rated(values, mapping, codes))
            case "messages":
                example["messages"] = _conversation(values, mapping, codes)
            case _:
                example["messages"] = _pair(values, mapping, codes)
    except _Unusable as reason:
        return Mapped(None, tuple(dict.fromkeys((*codes, *reason.args))))
    return Mapped(example, tuple(dict.fromkeys(codes)))


def _system(values: Values[str, Any], mapping: Mapping) -> list[Message]:
    system = render(mapping.system, values).strip()
    return [message("system", system)] if system else []


def _pair(values: Values[str, Any], mapping: Mapping, codes: list[str]) -> list[Message]:
    prompt, answer = render(mapping.prompt, values), render(mapping.answer, values)
    if not prompt.strip() and not answer.strip():
        raise _Unusable("map.empty")
    # An empty side is kept here: the missing-values step counts it, shows it and takes it out.
    messages = _system(values, mapping)
    for earlier in _history(values.get(mapping.history)) if mapping.history else []:
        messages += [message("user", earlier[0]), message("assistant", earlier[1])]
    messages += [message("user", prompt), message("assistant", answer)]
    if not prompt.strip() or not answer.strip():
        codes.append("map.no_prompt" if answer.strip() else "map.no_answer")
    return messages


def _history(value: Any) -> list[tuple[str, str]]:
    value = parsed(value)
    if not isinstance(value, list):
        return []
    return [(text_of(pair[0]), text_of(pair[1])) for pair in value if isinstance(pair, list) and len(pair) == 2]


def _turns(value: Any, mapping: Mapping, codes: list[str], before: list[Message]) -> list[Message]:
    """The turns of a cell after `before`, put right by the row checks. Raises _Unusable."""
    turns = turns_of(value, are_texts_turns=True)
    if turns is None:
        raise _Unusable("map.empty")
    messages = list(before)
    for turn in turns:
        made = message_of(turn, mapping.roles)
        if made is None:
            codes.append("role.unknown")
            if _repair(mapping, "role.unknown") == "out":
                raise _Unusable
            continue
        if has_other_parts(turn):
            codes.append("turn.part")
        if made["role"] == "system" and messages and messages[0]["role"] == "system":
            messages[0]["content"] = made["content"] or messages[0]["content"]
        elif not made["content"].strip():
            codes.append("turn.empty")
            if _repair(mapping, "turn.empty") == "out":
                raise _Unusable
        elif messages and messages[-1]["role"] == made["role"] and made["role"] != "tool":
            codes.append("turn.same_role")
            messages[-1] = _joined(messages[-1], made, _repair(mapping, "turn.same_role"))
        else:
            messages.append(made)
    return messages


def _repair(mapping: Mapping, code: str) -> str:
    return mapping.repairs.get(code) or REPAIRS[code][0]


def _joined(first: Message, second: Message, repair: str) -> Message:
    if repair == "out":
        raise _Unusable
    if repair == "last":
        return second
    joined = {**first, "content": first["content"] + "\n" + second["content"]}
    calls = [call for m in (first, second) for call in orjson.loads(m.get("tool_calls") or "[]")]
    return {**joined, "tool_calls": orjson.dumps(calls).decode()} if calls else joined


def _checked(messages: list[Message], mapping: Mapping, codes: list[str]) -> list[Message]:
    """A conversation whose first turn is not an answer that would be learned without a question."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), None)
    if first is not None and messages[first]["role"] == "assistant":
        codes.append("turn.starts_with_assistant")
        repair = _repair(mapping, "turn.starts_with_assistant")
        if repair == "out":
            raise _Unusable
        if repair == "drop":
            del messages[first]
        else:
            messages[first] = {**messages[first], "train": False}
    return messages


def _conversation(values: Values[str, Any], mapping: Mapping, codes: list[str]) -> list[Message]:
    messages = _turns(values.get(mapping.messages), mapping, codes, _system(values, mapping))
    if answer := render(mapping.answer, values).strip():
        messages.append(message("assistant", answer))
    messages = _checked(messages, mapping, codes)
    if not any(m["role"] == "assistant" and m["train"] for m in messages):
        raise _Unusable("turn.no_assistant")
    return messages


def _asked(values: Values[str, Any], mapping: Mapping, codes: list[str]) -> list[Message]:
    """The turns before the answers that are compared; empty when they are part of these."""
    before = _system(values, mapping)
    if mapping.messages:
        return _turns(values.get(mapping.messages), mapping, codes, before)
    prompt = render(mapping.prompt, values)
    # A prompt may itself be a list of turns, or a transcript.
    alone = _PLACE.fullmatch(mapping.prompt)
    if alone and turns_of(values.get(alone.group(1))):
        return _turns(values.get(alone.group(1)), mapping, codes, before)
    return [*before, message("user", prompt)] if prompt.strip() else before


def _answer_turns(value: Any, mapping: Mapping, codes: list[str]) -> list[Message]:
    value = parsed(value)
    if isinstance(value, dict) and turn_parts(value):
        value = [value]
    if isinstance(value, list) or (isinstance(value, str) and turns_of(value)):
        return _turns(value, mapping, codes, [])
    text = text_of(value)
    if not text.strip():
        raise _Unusable("map.no_answer")
    return [message("assistant", text)]


def _preference(values: Values[str, Any], mapping: Mapping, codes: list[str]) -> dict[str, Any]:
    chosen = _answer_turns(values.get(mapping.chosen), mapping, codes)
    rejected = _answer_turns(values.get(mapping.rejected), mapping, codes)
    same = 0
    for one, other in zip(chosen, rejected, strict=False):
        if (one["role"], one["content"]) != (other["role"], other["content"]):
            break
        same += 1
    if same == len(chosen) == len(rejected):
        codes.append("pair.equal")
        if _repair(mapping, "pair.equal") == "out":
            raise _Unusable
        # Nothing to compare; the answer itself can still be learned.
        begin = 0 if any(m["role"] == "user" for m in chosen) else None
        asked = [] if begin == 0 else _asked(values, mapping, codes)
        return {"messages": _checked([*asked, *chosen], mapping, codes)}
    # What both share is the question; it stands for the prompt's own column where it has one.
    shared = chosen[:same]
    is_whole = any(m["role"] == "user" for m in shared)
    before = [*_system(values, mapping), *shared] if is_whole else [*_asked(values, mapping, codes), *shared]
    if len(before) > 1 and before[0]["role"] == before[1]["role"] == "system":
        del before[0]
    better, worse = chosen[same:], rejected[same:]
    if not any(m["role"] == "user" for m in before):
        raise _Unusable("map.no_prompt")
    if not (better and worse and better[-1]["role"] == worse[-1]["role"] == "assistant"):
        raise _Unusable("turn.no_assistant")
    # Earlier answers are context: only the compared ones were judged.
    before = [{**m, "train": False} if m["role"] == "assistant" else m for m in before]
    return {"messages": [*before, *better], "chosen": better, "rejected": worse}


def rating_of(value: Any) -> bool | None:
    """Whether a rating says good or bad; None when it says neither."""
    word = text_of(value).strip().casefold()
    return True if word in GOOD else False if word in BAD else None


def _rated(values: Values[str, Any], mapping: Mapping, codes: list[str]) -> dict[str, Any]:
    is_good = rating_of(values.get(mapping.rating))
    if is_good is None:
        raise _Unusable("rating.unknown")
    messages = _conversation(values, mapping, codes) if mapping.messages else _pair(values, mapping, codes)
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise _Unusable("turn.no_assistant")
    if is_good:
        return {"messages": messages, "chosen": messages[-1:], "label": "good"}
    worse = messages[-1]
    asked = [{**m, "train": False} if m["role"] == "assistant" else m for m in messages[:-1]]
    return {"messages": [*asked, {**worse, "train": False}], "rejected": [worse], "label": "bad"}
