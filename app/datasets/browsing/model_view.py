"""A row as the model sees it: every token with its id, and whether it is learned, only read, or cut.

Which model that is lies in an upper slice, which tells us once (`set_model_source`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from tokenizers import Tokenizer

from app.accounts.service import Actor
from app.contracts.conversation import Example, Message
from app.text.template import ChatTemplate, TemplateFault, load_template
from app.text.tokens import Encoded, encode_shown, markers

SHOWN_TOKENS = 4_000


@dataclass(frozen=True)
class ReadingModel:
    """The model whose eyes are borrowed. `limit_tokens`: what it can read at once; `note`: why it is this one."""

    name: str
    tokenizer_file: Path
    limit_tokens: int
    note: str = ""


ModelSource = Callable[[Session, Actor, str], ReadingModel | None]
_source: list[ModelSource] = []


def set_model_source(source: ModelSource) -> None:
    """Who knows the chosen base model of a project: called once by app.main."""
    _source[:] = [source]


def model_of(session: Session, actor: Actor, project_id: str) -> ReadingModel | None:
    """The chosen base model of a project; None where there is none to borrow."""
    return _source[0](session, actor, project_id) if _source else None


@dataclass(frozen=True)
class Reader:
    """A loaded tokenizer with its template. `fault` says why conversations cannot be rendered, when they cannot."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    end_id: int | None
    fault: str = ""

    def encode(self, example: Example) -> Encoded:
        """Ids, spans and what is learned. Raises TemplateFault when the template refuses the row."""
        if self.template is None:
            if example.kind == "chat":
                raise TemplateFault(self.fault)
            return encode_shown(self.tokenizer, ChatTemplate(""), example, end_id=self.end_id)
        return encode_shown(self.tokenizer, self.template, example, end_id=self.end_id)


@lru_cache(maxsize=4)
def _reader(path: Path, _modified_ns: int) -> Reader:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    try:
        template = load_template(path.parent, vocabulary)
    except TemplateFault as fault:
        return Reader(tokenizer, None, None, str(fault))
    end = template.special_tokens.get("eos_token")
    return Reader(tokenizer, template, vocabulary.get(end) if end else None)


def reader_of(model: ReadingModel) -> Reader:
    """The model's tokenizer and template, loaded once."""
    return _reader(model.tokenizer_file, model.tokenizer_file.stat().st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: what it stands for, its id, and its state: learned, context or cut. `is_marker`: a sign of the
    template (typed ones are ordinary text)."""

    text: str
    id: int
    state: str
    is_marker: bool = False


@dataclass(frozen=True)
class ModelView:
    """A row in tokens; `hidden` tokens more are not shown. `fault`: why it cannot be shown at all."""

    tokens: list[Token] = field(default_factory=list)
    learned: int = 0
    context: int = 0
    cut: int = 0
    hidden: int = 0
    windows: int = 1
    is_left_out: bool = False
    fault: str = ""

    @property
    def total(self) -> int:
        """All tokens of the row."""
        return self.learned + self.context + self.cut


def example_of(row: dict[str, Any]) -> Example:
    """A row of a set as the contract's example."""
    messages = [Message(role=m["role"], content=m["content"], train=m["train"] is not False)
                for m in row.get("messages") or []]  # fmt: skip
    return Example(rid=max(0, row.get("_rid") or 0), kind=row["kind"], messages=messages, text=row.get("text") or "")


def view_of(reader: Reader, example: Example, limit: int) -> ModelView:
    """The row as it is encoded for training; a conversation over the limit loses whole turns from its front."""
    try:
        encoded = reader.encode(example)
    except TemplateFault as fault:
        return ModelView(fault=str(fault))
    cut, is_left_out = _cut(reader, example, encoded, limit)
    signs = set(markers(reader.tokenizer).values())
    tokens: list[Token] = []
    counts = {"learned": 0, "context": 0, "cut": 0}
    last_end = 0
    for at, (number, learned, (start, end)) in enumerate(zip(encoded.ids, encoded.learn, encoded.offsets, strict=True)):
        state = "cut" if start < cut or is_left_out else "learned" if learned else "context"
        counts[state] += 1
        if at >= SHOWN_TOKENS:
            continue
        is_marker = number in signs
        text = encoded.text[max(start, last_end) : end] if not is_marker else reader.tokenizer.id_to_token(number) or ""
        last_end = max(last_end, end)
        tokens.append(Token(text, number, state, is_marker))
    windows = max(1, -(-(len(encoded.ids) - 1) // max(1, limit - 1))) if example.kind == "text" else 1
    hidden = len(encoded.ids) - len(tokens)
    learned_count, context, cut_count = counts["learned"], counts["context"], counts["cut"]
    return ModelView(tokens, learned_count, context, cut_count, hidden, windows, is_left_out)


def _cut(reader: Reader, example: Example, encoded: Encoded, limit: int) -> tuple[int, bool]:
    """(up to which character it is cut, whether the row is left out altogether): the rule of the training engine."""
    if example.kind == "text" or len(encoded.ids) <= limit or reader.template is None:
        return 0, False
    messages, dropped, ids = list(example.messages), 0, encoded.ids
    first = 1 if messages[0].role == "system" else 0
    while len(ids) > limit:
        after = next((i for i in range(first + 1, len(messages)) if messages[i].role == "user"), None)
        if after is None:
            return 0, True
        dropped += after - first
        del messages[first:after]
        ids = reader.encode(example.model_copy(update={"messages": messages})).ids
    spans = reader.template.rendered(example.messages).spans
    last, kept = spans[first + dropped - 1][1], spans[first + dropped][0]
    # The sign that ends the last turn goes with it; the one that begins the next turn stays.
    signs = set(markers(reader.tokenizer).values())
    between = [
        span for number, span in zip(encoded.ids, encoded.offsets, strict=True)
        if number in signs and last <= span[0] < kept
    ]  # fmt: skip
    return (between[1][0] if len(between) > 1 else between[0][1] if between else last), False
