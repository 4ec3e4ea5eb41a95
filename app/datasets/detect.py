"""What kind of rows these are: each rule is scored by the share of rows that fit it whole; the best is offered."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from app.contracts.base import Contract
from app.datasets.mapping import Mapping, apply, column, folded_name, is_usable, rating_of
from app.datasets.turns import parsed, text_of, turn_parts, turns_of

ASK_BELOW_SHARE = 0.9
MESSAGE_COLUMNS = ("messages", "conversation", "conversations", "dialog", "dialogue", "utterances", "turns", "chat")
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("query", "response"), ("query", "answer"), ("user", "assistant"),
    ("input", "target"), ("input", "output"), ("source", "target"), ("article", "summary"), ("document", "summary"),
    ("context", "response"), ("user", "bot"), ("human", "assistant"), ("problem", "solution"), ("text", "summary"),
    ("frage", "antwort"), ("question", "réponse"), ("question", "reponse"), ("pregunta", "respuesta"),
    ("pergunta", "resposta"), ("domanda", "risposta"), ("vraag", "antwoord"),
)  # fmt: skip
_ASKED = ("question", "query", "frage", "pregunta", "pergunta", "domanda", "vraag")
PREFERENCES = (
    ("chosen", "rejected"), ("chosenresponse", "rejectedresponse"), ("responsechosen", "responserejected"),
    ("preferred", "dispreferred"), ("preferred", "nonpreferred"), ("better", "worse"), ("accepted", "rejected"),
)  # fmt: skip
RATINGS = ("label", "rating", "ktotag", "thumbs", "feedback", "desirable", "isdesirable", "isgood", "liked")
TREE_RANK = 0.8
# Above plain text, below what is taken without asking.
TWO_TEXTS_RANK = 0.6
_NONE = ("", "")
_TEXT_NAMES = ("text", "content", "body", "document", "article", "story", "passage")
_LABEL_NAMES = ("label", "category", "class", "intent", "topic", "sentiment", "tag", "type", "kind")
NAMES = {
    "messages": "Chat messages",
    "sharegpt": "ShareGPT conversations",
    "speakers": "Conversations, speakers not known",
    "tree": "Messages that answer each other",
    "preference": "Chosen and rejected answers",
    "rated": "Answers rated good or bad",
    "alpaca": "Instructions (Alpaca)",
    "pair": "Prompts and completions",
    "question": "Questions and answers",
    "label": "Texts with a label",
    "text": "Plain text",
    "document": "Sections of documents",
}
DOCUMENT_COLUMNS = {"document", "place", "heading", "text"}


class Detection(Contract):
    """One way to read the rows. `share` (0 to 1) fit whole; `misfits` are rows (by number) that do not."""

    format: str
    name: str
    share: float
    mapping: Mapping
    misfits: list[int] = Field(default_factory=list)
    rank: float = Field(1.0, description="factor by which a rule gives way to a more telling one")


Rows = Sequence[tuple[int, dict[str, Any]]]
Names = dict[str, str]
Fits = Callable[[dict[str, Any]], bool]


def detect(rows: Rows) -> list[Detection]:
    """All rules that fit some of the rows, the best first (ties: the more specific rule). Empty for no rows."""
    if not rows:
        return []
    found = _by_rules(rows)
    for name in _object_columns(rows):
        inner = [(row, value if isinstance(value := parsed(values.get(name)), dict) else {}) for row, values in rows]
        for detection in _by_rules(inner):
            if detection.format not in ("text", "label", "speakers", "document"):
                mapping = detection.mapping.model_copy(update={"cell": name})
                found.append(detection.model_copy(update={"mapping": mapping, "rank": detection.rank * 0.97}))
    found = [d for d in found if d.share > 0]
    return sorted(found, key=lambda d: -round(d.share * d.rank, 3))[:6]


def _by_rules(rows: Rows) -> list[Detection]:
    columns = Counter(name for _row, values in rows for name in values)
    by_folded: Names = {}
    for name, _count in columns.most_common():
        by_folded.setdefault(folded_name(name), name)
    found: list[Detection] = []
    for rule in (_tree, _messages, _preference, _rated, _alpaca, _pairs, _two_texts, _labels, _text):
        found += rule(rows, by_folded)
    return found


def _object_columns(rows: Rows) -> list[str]:
    """Columns whose cells are objects (also as JSON text) in nine rows of ten: a row may be inside."""
    counts = Counter(
        name
        for _row, values in rows
        for name, value in values.items()
        if isinstance(value, dict) or (isinstance(value, str) and value[:1] == "{" and isinstance(parsed(value), dict))
    )
    return [name for name, number in counts.most_common(3) if number >= 0.9 * len(rows)]


def _scored(kind: str, rows: Rows, mapping: Mapping, fits: Fits | None = None, rank: float = 1.0) -> Detection:
    """`fits` says whether a row fits whole; without it, whether something can be learned from the row as mapped."""
    fits = fits or (lambda values: is_usable(apply(values, mapping)))
    misfits = [row for row, values in rows if not fits(values)]
    share = (len(rows) - len(misfits)) / len(rows)
    return Detection(format=kind, name=NAMES[kind], share=share, mapping=mapping, misfits=misfits[:3], rank=rank)


def _has_text(values: dict[str, Any], name: str) -> bool:
    value = values.get(name)
    return (isinstance(value, str | int | float) and not isinstance(value, bool)) or isinstance(value, list | dict)


def _first(by_folded: Names, names: Sequence[str]) -> str:
    """The column of the first name that there is, or an empty text."""
    return next((by_folded[name] for name in names if name in by_folded), "")


def _tree(rows: Rows, by_folded: Names) -> list[Detection]:
    """One message a row, each naming the one that it answers (OASST): conversations have to be rebuilt first."""
    own, parent = _first(by_folded, ("messageid", "id")), _first(by_folded, ("parentid", "replyto", "inreplyto"))
    text, role = _first(by_folded, _TEXT_NAMES), _first(by_folded, ("role", "speaker", "author"))
    if not (own and parent and text and role):
        return []
    mapping = Mapping(shape="text", text=column(text))
    # Chosen by a person: the file is read again for it, and its rows become other rows.
    return [_scored("tree", rows, mapping, lambda v: bool(v.get(own)) and bool(text_of(v.get(role))), TREE_RANK)]


def _messages(rows: Rows, by_folded: Names) -> list[Detection]:
    found = []
    candidates = [by_folded[name] for name in MESSAGE_COLUMNS if name in by_folded]
    compared = {by_folded[n] for pair in PREFERENCES for n in pair if n in by_folded}
    candidates += [
        n for n in by_folded.values() if n not in candidates and n not in compared and turns_of(rows[0][1].get(n))
    ]
    for name in candidates[:4]:
        speakers: Counter[str] = Counter()
        is_openai = False
        is_named = folded_name(name) in MESSAGE_COLUMNS
        for _row, values in rows:
            for turn in turns_of(values.get(name), are_texts_turns=is_named) or []:
                if parts := turn_parts(turn):
                    speakers[parts[0]] += 1
                    is_openai = is_openai or "role" in turn
        if not speakers:
            continue

        def are_turns(values: dict[str, Any], name: str = name) -> bool:
            turns = turns_of(values.get(name), are_texts_turns=True)
            return bool(turns) and all(turn_parts(turn) for turn in turns or [])

        kind = "messages" if is_openai else "sharegpt"
        system = column(_first(by_folded, ("system", "systemprompt")))
        mapping = Mapping(shape="messages", messages=name, system=system)
        scored = _scored(kind, rows, mapping)
        if not scored.share:
            # Turns, but by speakers that a person has to name.
            scored = _scored("speakers", rows, mapping, are_turns, 0.6)
        found.append(scored)
    return found


def _preference(rows: Rows, by_folded: Names) -> list[Detection]:
    chosen, rejected = next(((by_folded[a], by_folded[b]) for a, b in PREFERENCES if {a, b} <= by_folded.keys()), _NONE)
    if not chosen:
        return []
    mapping = Mapping(
        shape="preference",
        messages=_first(by_folded, MESSAGE_COLUMNS),
        prompt=column(_first(by_folded, ("prompt", "question", "instruction", "query", "input", "context"))),
        system=column(_first(by_folded, ("system", "systemprompt"))),
        chosen=chosen,
        rejected=rejected,
    )
    return [_scored("preference", rows, mapping, rank=1.02)]


def _rated(rows: Rows, by_folded: Names) -> list[Detection]:
    """One answer a row that was found good or bad (KTO)."""
    rating = next((by_folded[n] for n in RATINGS if n in by_folded and _is_rating(rows, by_folded[n], n)), "")
    turns = _first(by_folded, MESSAGE_COLUMNS)
    pair = next(((by_folded[a], by_folded[b]) for a, b in PAIRS if a in by_folded and b in by_folded), _NONE)
    if not rating or not (turns or pair[0]):
        return []
    mapping = Mapping(shape="rated", rating=rating, system=column(_first(by_folded, ("system", "systemprompt"))))
    if turns:
        mapping = mapping.model_copy(update={"messages": turns})
    else:
        mapping = mapping.model_copy(update={"prompt": column(pair[0]), "answer": column(pair[1])})
    return [_scored("rated", rows, mapping, rank=1.01)]


def _is_rating(rows: Rows, name: str, folded: str) -> bool:
    cells = [values[name] for _row, values in rows if values.get(name) not in (None, "")]
    if folded == "label" and any(text_of(cell).casefold() not in ("true", "false") for cell in cells):
        return False  # a column called “label” with 0 and 1 is a class more often than a rating
    return bool(cells) and all(rating_of(cell) is not None for cell in cells)


def _alpaca(rows: Rows, by_folded: Names) -> list[Detection]:
    instruction = by_folded.get("instruction")
    answer = _first(by_folded, ("output", "response", "completion", "answer"))
    if not instruction or not answer:
        return []
    extra = _first(by_folded, ("input", "context"))
    mapping = Mapping(
        shape="pair",
        prompt=column(instruction) + (f"\n\n{column(extra)}" if extra else ""),
        answer=column(answer),
        system=column(_first(by_folded, ("system", "systemprompt"))),
        history=by_folded.get("history", ""),
    )
    return [_scored("alpaca", rows, mapping, lambda v: _has_text(v, instruction) and _has_text(v, answer))]


def _pairs(rows: Rows, by_folded: Names) -> list[Detection]:
    found = []
    for first, second in PAIRS:
        prompt = by_folded.get(first) or by_folded.get(first + "s")
        answer = by_folded.get(second) or by_folded.get(second + "s")
        if not prompt or not answer:
            continue
        context = _first(by_folded, ("context", "passage")) if first == "question" else ""

        def fits(values: dict[str, Any], prompt: str = prompt, answer: str = answer) -> bool:
            return _has_text(values, prompt) and _has_text(values, answer)

        mapping = Mapping(
            shape="pair",
            prompt=(f"{column(context)}\n\n" if context else "") + column(prompt),
            answer=column(answer),
            system=column(_first(by_folded, ("system", "systemprompt"))),
            history=by_folded.get("history", ""),
        )
        found.append(_scored("question" if first in _ASKED else "pair", rows, mapping, fits))
    return found[:3]


def _two_texts(rows: Rows, by_folded: Names) -> list[Detection]:
    """Two columns of texts whose names say nothing: probably asked and answered, in this order. Always asked about."""
    names = list(dict.fromkeys(name for _row, values in rows for name in values))
    if len(names) != 2 or set(_longest_columns(rows)) != set(names) or _pairs(rows, by_folded):
        return []
    if any(folded in _TEXT_NAMES for folded in by_folded):
        return []
    first, second = names
    mapping = Mapping(shape="pair", prompt=column(first), answer=column(second))
    return [_scored("question", rows, mapping, lambda v: _has_text(v, first) and _has_text(v, second), TWO_TEXTS_RANK)]


def _labels(rows: Rows, by_folded: Names) -> list[Detection]:
    """A short column with few values beside a text: the label is learned as the answer."""
    texts = _longest_columns(rows)
    label = _label_column(rows, by_folded, texts[:1])
    if not label or not texts or texts[0] == label:
        return []
    if by_folded.keys() <= DOCUMENT_COLUMNS and "text" in by_folded:
        return []
    text = texts[0]
    mapping = Mapping(shape="label", prompt=column(text), answer=column(label), label=label)
    # Named columns of questions and answers are the better reading where both fit.
    return [_scored("label", rows, mapping, lambda v: _has_text(v, text) and bool(text_of(v.get(label)).strip()), 0.99)]


def _label_column(rows: Rows, by_folded: Names, not_these: list[str]) -> str:
    best, best_score = "", 0.0
    for folded, name in by_folded.items():
        if name in not_these:
            continue
        values = [text_of(v.get(name)).strip() for _r, v in rows]
        filled = [v for v in values if v]
        distinct = len(set(filled))
        # Of a handful of rows every column has few values: one that says nothing by its name must repeat some.
        is_few = 2 <= distinct <= max(2, min(200, len(filled) // 4)) and (
            distinct < len(filled) or folded in _LABEL_NAMES
        )
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


def _text(rows: Rows, by_folded: Names) -> list[Detection]:
    named = [by_folded[n] for n in _TEXT_NAMES if n in by_folded]
    name = (named or _longest_columns(rows)[:1] or [""])[0]
    if not name:
        return []
    is_document = "text" in by_folded and len(by_folded) > 1 and by_folded.keys() <= DOCUMENT_COLUMNS
    # Plain text fits everything, so it wins only where it stands alone.
    rank = 1.0 if len(by_folded) == 1 or is_document else 0.5
    return [
        _scored(
            "document" if is_document else "text",
            rows,
            Mapping(shape="text", text=column(name)),
            lambda v: _has_text(v, name),
            rank,
        )
    ]
