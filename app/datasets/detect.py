"""What kind of rows these are: each rule is scored by the share of rows that fit it whole; the best is offered."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from app.contracts.base import Contract
from app.datasets.mapping import Mapping, column, folded_name, role_of, text_of, turn_parts, turns_of

ASK_BELOW_SHARE = 0.9
MESSAGE_COLUMNS = ("messages", "conversation", "conversations", "dialog", "dialogue", "utterances", "turns", "chat")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("query", "response"), ("query", "answer"), ("user", "assistant"),
    ("input", "target"), ("input", "output"), ("source", "target"), ("article", "summary"), ("document", "summary"),
    ("context", "response"),
)  # fmt: skip
_TEXT_NAMES = ("text", "content", "body", "document", "article", "story", "passage")
_LABEL_NAMES = ("label", "category", "class", "intent", "topic", "sentiment", "tag", "type", "kind")
NAMES = {
    "messages": "Chat messages",
    "sharegpt": "ShareGPT conversations",
    "speakers": "Conversations, speakers not known",
    "preference": "Chosen and rejected answers",
    "alpaca": "Instructions (Alpaca)",
    "pair": "Prompts and completions",
    "question": "Questions and answers",
    "label": "Texts with a label",
    "text": "Plain text",
}


class Detection(Contract):
    """One way to read the rows. `share` (0 to 1) fit whole; `misfits` are rows (by number) that do not."""

    format: str
    name: str
    share: float
    mapping: Mapping
    misfits: list[int] = Field(default_factory=list)
    rank: float = Field(1.0, description="factor by which a rule gives way to a more telling one")


Rows = Sequence[tuple[int, dict[str, Any]]]


def detect(rows: Rows) -> list[Detection]:
    """All rules that fit some of the rows, the best first (ties: the more specific rule). Empty for no rows."""
    if not rows:
        return []
    columns = Counter(name for _row, values in rows for name in values)
    by_folded: dict[str, str] = {}
    for name, _count in columns.most_common():
        by_folded.setdefault(folded_name(name), name)
    found: list[Detection] = []
    for rule in (_messages, _preference, _alpaca, _pairs, _labels, _text):
        found += rule(rows, by_folded)
    found = [d for d in found if d.share > 0]
    return sorted(found, key=lambda d: -round(d.share * d.rank, 3))[:6]


def _scored(
    kind: str, rows: Rows, mapping: Mapping, fits: Callable[[dict[str, Any]], bool], rank: float = 1.0
) -> Detection:
    misfits = [row for row, values in rows if not fits(values)]
    share = (len(rows) - len(misfits)) / len(rows)
    return Detection(format=kind, name=NAMES[kind], share=share, mapping=mapping, misfits=misfits[:3], rank=rank)


def _has_text(values: dict[str, Any], name: str) -> bool:
    value = values.get(name)
    return (isinstance(value, str | int | float) and not isinstance(value, bool)) or isinstance(value, list)


def _messages(rows: Rows, by_folded: dict[str, str]) -> list[Detection]:
    found = []
    candidates = [by_folded[name] for name in MESSAGE_COLUMNS if name in by_folded]
    candidates += [n for n in by_folded.values() if n not in candidates and turns_of(rows[0][1].get(n))]
    for name in candidates[:4]:
        speakers: Counter[str] = Counter()
        is_openai = False
        for _row, values in rows:
            for turn in turns_of(values.get(name)) or []:
                if parts := turn_parts(turn):
                    speakers[parts[0]] += 1
                    is_openai = is_openai or "role" in turn
        if not speakers:
            continue

        def fits(values: dict[str, Any], name: str = name) -> bool:
            turns = turns_of(values.get(name))
            parts = [turn_parts(turn) for turn in turns or []]
            return bool(parts) and all(p and role_of(p[0], {}) for p in parts)

        def are_turns(values: dict[str, Any], name: str = name) -> bool:
            turns = turns_of(values.get(name))
            return bool(turns) and all(turn_parts(turn) for turn in turns or [])

        kind = "messages" if is_openai else "sharegpt"
        mapping = Mapping(shape="messages", messages=name, system=column(by_folded.get("system", "")))
        scored = _scored(kind, rows, mapping, fits)
        if not scored.share:
            # Turns, but by speakers that a person has to name.
            scored = _scored("speakers", rows, mapping, are_turns, 0.6)
        found.append(scored)
    return found


def _preference(rows: Rows, by_folded: dict[str, str]) -> list[Detection]:
    chosen, rejected = by_folded.get("chosen"), by_folded.get("rejected")
    if not chosen or not rejected:
        return []
    turns = next((by_folded[n] for n in MESSAGE_COLUMNS if n in by_folded), "")
    prompt = next((by_folded[n] for n in ("prompt", "question", "instruction", "input") if n in by_folded), "")
    if turns:
        mapping = Mapping(shape="messages", messages=turns, answer=column(chosen))
    elif prompt:
        mapping = Mapping(shape="pair", prompt=column(prompt), answer=column(chosen))
    elif turns_of(rows[0][1].get(chosen)):
        mapping = Mapping(shape="messages", messages=chosen)
    else:
        return []
    return [_scored("preference", rows, mapping, lambda v: bool(v.get(chosen)) and bool(v.get(rejected)), 1.01)]


def _alpaca(rows: Rows, by_folded: dict[str, str]) -> list[Detection]:
    instruction = by_folded.get("instruction")
    answer = next((by_folded[n] for n in ("output", "response", "completion", "answer") if n in by_folded), None)
    if not instruction or not answer:
        return []
    extra = by_folded.get("input") or by_folded.get("context")
    mapping = Mapping(
        shape="pair",
        prompt=column(instruction) + (f"\n\n{column(extra)}" if extra else ""),
        answer=column(answer),
        system=column(by_folded.get("system", "")),
        history=by_folded.get("history", ""),
    )
    return [_scored("alpaca", rows, mapping, lambda v: _has_text(v, instruction) and _has_text(v, answer))]


def _pairs(rows: Rows, by_folded: dict[str, str]) -> list[Detection]:
    found = []
    for first, second in PAIRS:
        prompt = by_folded.get(first) or by_folded.get(first + "s")
        answer = by_folded.get(second) or by_folded.get(second + "s")
        if not prompt or not answer:
            continue
        context = by_folded.get("context") if first == "question" else None

        def fits(values: dict[str, Any], prompt: str = prompt, answer: str = answer) -> bool:
            return _has_text(values, prompt) and _has_text(values, answer)

        mapping = Mapping(
            shape="pair",
            prompt=(f"{column(context)}\n\n" if context else "") + column(prompt),
            answer=column(answer),
            system=column(by_folded.get("system", "")),
        )
        found.append(_scored("question" if first in ("question", "query") else "pair", rows, mapping, fits))
    return found[:3]


def _labels(rows: Rows, by_folded: dict[str, str]) -> list[Detection]:
    """A short column with few values beside a text: the label is learned as the answer."""
    texts = _longest_columns(rows)
    label = _label_column(rows, by_folded, texts[:1])
    if not label or not texts or texts[0] == label:
        return []
    text = texts[0]
    mapping = Mapping(shape="label", prompt=column(text), answer=column(label), label=label)
    # Named columns of questions and answers are the better reading where both fit.
    return [_scored("label", rows, mapping, lambda v: _has_text(v, text) and bool(text_of(v.get(label)).strip()), 0.99)]


def _label_column(rows: Rows, by_folded: dict[str, str], not_these: list[str]) -> str:
    best, best_score = "", 0.0
    for folded, name in by_folded.items():
        if name in not_these:
            continue
        values = [text_of(v.get(name)).strip() for _r, v in rows]
        filled = [v for v in values if v]
        distinct = len(set(filled))
        is_few = 2 <= distinct <= max(2, min(200, len(filled) // 4))
        if not is_few or max(map(len, filled)) > 80 or len(filled) < 0.9 * len(values):
            continue
        score = (2.0 if folded in _LABEL_NAMES else 1.0) - distinct / 1000
        if score > best_score:
            best, best_score = name, score
    return best


def _longest_columns(rows: Rows) -> list[str]:
    """Columns of texts, the longest on average first."""
    lengths: Counter[str] = Counter()
    for _row, values in rows:
        for name, value in values.items():
            if isinstance(value, str):
                lengths[name] += len(value)
    return [name for name, total in lengths.most_common() if total > 8 * len(rows)]


def _text(rows: Rows, by_folded: dict[str, str]) -> list[Detection]:
    named = [by_folded[n] for n in _TEXT_NAMES if n in by_folded]
    name = (named or _longest_columns(rows)[:1] or [""])[0]
    if not name:
        return []
    # Plain text fits everything, so it wins only where it stands alone.
    rank = 1.0 if len(by_folded) == 1 else 0.5
    return [_scored("text", rows, Mapping(shape="text", text=column(name)), lambda v: _has_text(v, name), rank)]
