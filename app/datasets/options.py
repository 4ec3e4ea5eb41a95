"""Reading options: what becomes of records that do not fit. Chosen by the fix buttons, frozen with the version."""

from typing import Literal

from pydantic import Field

from app.contracts.base import Contract
from app.datasets.reading.sniffed import Format


class ReadOptions(Contract):
    """Empty values mean: as detected."""

    format: Format | Literal[""] = ""
    encoding: str = Field("", max_length=40)
    delimiter: str = Field("", max_length=1)
    has_header: bool = True
    short_rows: Literal["pad", "skip"] = "pad"
    long_rows: Literal["join", "cut", "skip"] = "join"
    wrong_encoding: Literal["repair", "skip"] = "repair"
    open_quotes: Literal["skip", "repair"] = "skip"
    bad_json: Literal["skip", "repair"] = "skip"
    doubled_keys: Literal["number", "last", "skip"] = "number"
    mistyped_columns: Literal["keep", "map"] = "keep"
    text_unit: Literal["block", "paragraph", "line", "document"] = Field(
        "block", description="plain text: about 2,000 characters of whole paragraphs, a paragraph, a line, everything"
    )
    threads: Literal["keep", "join"] = Field(
        "keep", description="join: messages that name the one they answer become whole conversations"
    )
    sheet: str = Field("", max_length=200, description="of a spreadsheet; empty: all")
    assistant: str = Field("", max_length=80, description="the speaker of a chat log to learn from; empty: as detected")
    gap_minutes: int = Field(30, ge=1, le=7 * 24 * 60, description="a silence that parts two conversations")
    renamed: dict[str, str] = Field(default_factory=dict, description="found by mistyped_columns: old name to new")
