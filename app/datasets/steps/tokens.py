"""The step for rows longer than the chosen base model reads: marked, left out, cut, or made several rows."""

import hashlib
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from app.contracts.base import Contract
from app.contracts.conversation import Example
from app.datasets.findings import Refused
from app.datasets.steps.batches import examples_of, keep
from app.datasets.steps.contract import MAIN, SIDES, TEXT, Batch, Changes, RowRunner, Step, Words
from app.datasets.tables import MOST_PARTS

if TYPE_CHECKING:
    from app.datasets.browsing.model_view import Reader, ReadingModel

CHOICES = {
    "mark": "Only mark them", "out": "Leave them out", "cut": "Cut them at the limit",
    "split": "Split them into several rows", "turns": "Leave out their oldest turns",
}  # fmt: skip
SHORTEST_LIMIT = 16
# Unicode's compatibility forms make at most this many bytes of one.
_GROWTH = 12
_PARAGRAPH, _LINE = re.compile(r"\n[^\S\n]*\n\s*"), re.compile(r"\n\s*")
_SENTENCE = re.compile(r"[.!?…]['\"”’)\]]*\s+|[。！？]['\"”’」』)）]*\s*")
_BLANK = re.compile(r"\s+")
_BORDERS = (_PARAGRAPH, _LINE, _SENTENCE, _BLANK)


class Reading(Contract):
    """By whose tokens rows are counted. `limit_tokens`: what the model reads at once."""

    name: str
    tokenizer_file: str
    tokenizer_sha256: str
    limit_tokens: int


class TokensParams(Contract):
    """What happens to rows over the limit. `reading` is filled in with the project's base model."""

    texts: Literal["mark", "out", "cut", "split"] = Field(
        "mark", title="Plain texts that are too long",
        description="Split texts end at a paragraph, a line or a sentence, and remember the row they come from.",
    )  # fmt: skip
    conversations: Literal["mark", "out", "turns"] = Field(
        "mark", title="Conversations that are too long",
        description="They are never split, since an answer belongs to what was said before it, and no answer is cut:"
        " whole turns go, or the row where even its last question and answer are too long.",
    )  # fmt: skip
    limit: int = Field(0, ge=0, le=10_000_000, title="Longest row", description="tokens; 0: what the model reads")
    reading: Reading | None = Field(None, json_schema_extra={"is_given": True})

    @field_validator("limit")
    @classmethod
    def _is_enough(cls, value: int) -> int:
        if 0 < value < SHORTEST_LIMIT:
            raise ValueError(f"Write 0, or at least {SHORTEST_LIMIT}.")
        return value


def reading_of(model: "ReadingModel") -> Reading:
    """The model as a plan keeps it."""
    path = model.tokenizer_file
    return Reading(
        name=model.name, tokenizer_file=str(path), tokenizer_sha256=_fingerprint(path, path.stat().st_mtime_ns),
        limit_tokens=model.limit_tokens,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _fingerprint(path: Path, _modified_ns: int) -> str:
    """SHA-256 of the tokenizer and of the files beside it that may hold the template."""
    found = hashlib.sha256()
    for name in (path.name, "tokenizer_config.json", "chat_template.jinja"):
        if (file := path.with_name(name)).is_file():
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def border(text: str, start: int, end: int, least: float) -> int:
    """Where to part the text: after the last paragraph, line, sentence or word that ends in `start` to `end`, not
    before the share `least` of it; else at `end`."""
    low = start + max(1, int((end - start) * least))
    for pattern in _BORDERS:
        if found := list(pattern.finditer(text, low, end)):
            return found[-1].end()
    return end


def pieces(text: str, cuts: list[int]) -> list[str]:
    """The text parted at these places, without the blank lines at the seams. Blank pieces are left away."""
    places = [0, *cuts, len(text)]
    found = (text[a:b].strip("\n").rstrip() for a, b in pairwise(places))
    return [piece for piece in found if piece]


class Measure:
    """Counts tokens as training does: conversations through the template, texts with the sign that ends them."""

    def __init__(self, reading: Reading, limit: int) -> None:
        """Raises Refused when the tokenizer is not there any more, or is another one."""
        from app.datasets.browsing.model_view import ReadingModel, reader_of

        path = Path(reading.tokenizer_file)
        if not path.is_file() or _fingerprint(path, path.stat().st_mtime_ns) != reading.tokenizer_sha256:
            raise Refused(
                f"The tokenizer of “{reading.name}”, by which long rows are counted, is gone or has changed."
                " Apply the step “Too long for the model” again; it takes the model that is chosen now.",
                "tokens.gone",
            )
        self.reader: Reader = reader_of(ReadingModel(reading.name, path, reading.limit_tokens))
        self.limit = limit or reading.limit_tokens
        self.room = max(1, self.limit - (self.reader.end_id is not None))
        self._growth = 1 if self.reader.tokenizer.normalizer is None else _GROWTH
        self._base, self._turn = self._overhead()

    def _overhead(self) -> tuple[int, int]:
        """(tokens of the template round a conversation, round a turn): more than it can take, for the gate."""
        from app.text.template import TemplateFault

        if self.reader.template is None:
            return 0, 0
        turns = [{"role": role, "content": "x", "train": True} for role in ("user", "assistant")]
        try:
            two, four = (self.conversation(turns * times) for times in (1, 2))
        except TemplateFault:
            return 0, 0
        return 2 * two, 2 * (four - two)

    def suspects(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Rows that may be too long: no tokenizer makes more tokens than there are bytes."""
        size = np.bincount(
            batch.owners, weights=batch.texts.str.len_bytes().to_numpy().astype(np.float64), minlength=len(batch)
        )
        turns = np.bincount(batch.owners, minlength=len(batch))
        extra = np.where(batch.is_chat, self._base + self._turn * turns, 2)
        return np.asarray(size * self._growth + extra > self.limit)

    def number(self, text: str) -> int:
        """Tokens of a plain text, without the sign that ends it."""
        return len(self._encoded(text).ids)

    def _encoded(self, text: str) -> Any:
        self.reader.tokenizer.encode_special_tokens = True
        return self.reader.tokenizer.encode(text, add_special_tokens=False)

    def conversation(self, turns: list[dict[str, Any]]) -> int:
        """Tokens of a conversation. Raises TemplateFault when the template refuses it."""
        from app.datasets.browsing.model_view import example_of

        example: Example = example_of({"kind": "chat", "messages": turns})
        return len(self.reader.encode(example).ids)

    def longest(self, example: dict[str, Any], dropped: range = range(0)) -> int:
        """Tokens of a conversation, of the longer one where two answers are compared; without these turns."""
        turns = [turn for at, turn in enumerate(example["messages"]) if at not in dropped]
        return max(self.conversation([*turns, *(example.get(side) or [])]) for side in self._sides(example))

    def _sides(self, example: dict[str, Any]) -> list[str]:
        return [side for side in SIDES[1:] if example.get(side)] or [""]

    def is_long(self, text: str) -> bool:
        """Whether a plain text is over the limit."""
        return self._reach(text, 0) < len(text)

    def _reach(self, text: str, start: int) -> int:
        """How far the limit reaches from `start`: the place after it, or the end of the text."""
        width = max(64, self.room * 6)
        while True:
            encoded = self._encoded(text[start : start + width])
            if len(encoded.ids) > self.room:
                return start + max(1, int(encoded.offsets[self.room][0]))
            if start + width >= len(text):
                return len(text)
            width *= 2

    def cuts(self, text: str, least: float = 0.5, most: int = MOST_PARTS - 1) -> list[int]:
        """Places at which to part a text so that every piece is within the limit; at most `most`."""
        found: list[int] = []
        start = 0
        while len(found) < most:
            end = self._reach(text, start)
            if end >= len(text):
                break
            cut = border(text, start, end, least)
            # Parted from what follows it, a word may take other tokens: what was cut is counted again.
            while self.number("".join(pieces(text[start:cut], []))) > self.room and cut > start + 1:
                cut = border(text, start, cut - max(1, (cut - start) // 16), least)
            if not text[cut:].strip():
                break
            found.append(cut)
            start = cut
        return found

    def too_many(self, example: dict[str, Any]) -> range | None:
        """The oldest turns that must go, the rule of the training engine; None when no whole turn is left then."""
        messages = example["messages"]
        first = 1 if messages and messages[0]["role"] == "system" else 0
        asked = [at for at in range(first + 1, len(messages)) if messages[at]["role"] == "user"]
        for after in asked:
            if self.longest(example, range(first, after)) <= self.limit:
                return range(first, after)
        return None


def _tokens(params: TokensParams) -> RowRunner:
    if params.reading is None:  # tried where no model is known
        return lambda _batch: Changes()
    # The sandbox of templates: only where tokens are counted.
    from app.text.template import TemplateFault

    measure = Measure(params.reading, params.limit)

    def run(batch: Batch) -> Changes:
        changes, codes = Changes(), dict[str, list[int]]()
        removed, texts, dropped = list[int](), dict[int, str](), list[int]()
        suspects = np.flatnonzero(measure.suspects(batch))
        starts = batch.starts()
        for row in suspects[~batch.is_chat[suspects]].tolist():
            at = int(starts[row])
            text = batch.texts[at]
            if batch.roles[at] != TEXT or not measure.is_long(text):
                continue
            if params.texts in ("mark", "out"):
                (codes.setdefault("long.tokens", []) if params.texts == "mark" else removed).append(row)
            elif params.texts == "cut":
                if cuts := measure.cuts(text, 0.9, 1):
                    texts[at] = text[: cuts[0]].rstrip()
                    codes.setdefault("fix.cut", []).append(row)
            elif cuts := measure.cuts(text):
                changes.cuts[row] = cuts
                codes.setdefault("fix.split", []).append(row)
        chats = np.zeros(len(batch), np.bool_)
        chats[suspects] = batch.is_chat[suspects]
        for row, example in zip(np.flatnonzero(chats).tolist(), examples_of(keep(batch, chats)), strict=True):
            try:
                if measure.longest(example) <= measure.limit:
                    continue
                gone = measure.too_many(example) if params.conversations == "turns" else None
            except TemplateFault:
                continue
            if params.conversations == "mark":
                codes.setdefault("long.tokens", []).append(row)
            elif gone is None:
                removed.append(row)
            else:
                own = np.arange(starts[row], starts[row + 1])
                dropped += own[batch.sides[own] == MAIN][gone.start : gone.stop].tolist()
                codes.setdefault("fix.turns", []).append(row)
        changes.texts = (list(texts), list(texts.values()))
        changes.dropped, changes.codes = dropped, {code: sorted(rows) for code, rows in codes.items()}
        changes.removed = {"out.tokens": sorted(removed)} if removed else {}
        return changes

    return run


TOKENS = Step(
    "tokens", 1, "Too long for the model", TokensParams, _tokens, 16384,
    codes={
        "out.tokens": "Longer than the model reads at once", "fix.cut": "Cut at the limit",
        "fix.split": "Split into several rows", "fix.turns": "Oldest turns left out",
        "long.tokens": "Longer than the model reads at once",
    },
    words=Words(
        "1 row is longer than the model reads at once", "%(n)s rows are longer than the model reads at once",
        "Counted in the tokens of your base model. In training, texts over the limit are cut into windows wherever"
        " they happen to end, and conversations lose their oldest turns; here you decide.",
        "Mark them", "scale",
    ),
    default="ask", has_mode=False,
)  # fmt: skip
