"""A question asked of a set of rows: search, filters and order, as the address of the page carries them."""

import hashlib
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
from pydantic import Field

from app.contracts.base import Contract

State = Literal["", "edited", "deleted", "excluded", "untouched"]
Sort = Literal["", "length", "-length", "score", "-score", "-row"]
OPTIONAL = ("label", "split", "language", "words", "turns", "source", "score", "marks")


class Question(Contract):
    """All filters together must hold. Lengths are in words of the whole row; `code` is a mark of the trace."""

    q: str = Field("", max_length=200)
    split: str = Field("", max_length=20)
    label: str = Field("", max_length=200)
    source: str = Field("", max_length=64)
    language: str = Field("", max_length=12)
    code: str = Field("", max_length=60)
    least: int | None = Field(None, ge=0, le=2**31)
    most: int | None = Field(None, ge=0, le=2**31)
    first_least: int | None = Field(None, ge=0, le=2**31)
    first_most: int | None = Field(None, ge=0, le=2**31)
    second_least: int | None = Field(None, ge=0, le=2**31)
    second_most: int | None = Field(None, ge=0, le=2**31)
    tag: str = Field("", max_length=60)
    state: State = ""
    sort: Sort = ""

    @property
    def is_plain(self) -> bool:
        """Whether it asks for all rows in their order."""
        return not self.parts()

    @property
    def is_all(self) -> bool:
        """Whether it leaves no row out (it may still order them)."""
        return not {k: v for k, v in self.parts().items() if k != "sort"}

    def parts(self) -> dict[str, Any]:
        """What is asked, without what is not."""
        return {name: value for name, value in self.model_dump().items() if value not in ("", None)}

    def url(self, **changes: Any) -> str:
        """The query of an address that asks this, with `changes` (None takes a filter away)."""
        found = {**self.parts(), **changes}
        return urlencode({name: value for name, value in found.items() if value not in ("", None)})

    def key(self, edits_stamp: str) -> str:
        """The name of its answer. Edits change answers, so they are part of it."""
        return hashlib.sha256(orjson.dumps([self.parts(), edits_stamp], option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]


def question_of(values: dict[str, Any]) -> Question:
    """The question of an address; a field that makes no sense is left out rather than refused."""
    kept = {name: value for name, value in values.items() if name in Question.model_fields and value != ""}
    for name in list(kept):
        try:
            Question.model_validate({name: kept[name]})
        except ValueError:
            del kept[name]
    return Question.model_validate(kept)
