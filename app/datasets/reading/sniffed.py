"""What was found out about a file before it is read."""

from typing import Literal

from pydantic import Field

from app.contracts.base import Contract

Format = Literal[
    "csv", "tsv", "json", "jsonl", "parquet", "arrow", "sheets", "txt", "markdown", "html", "pdf", "docx", "epub",
    "chat", "zip",
]  # fmt: skip
Dialect = Literal["", "irc", "whatsapp", "turns", "slack", "discord"]


class Sniffed(Contract):
    """How a file will be read. Everything here may be corrected by a person."""

    format: Format
    encoding: str = Field("utf-8", max_length=40)
    bom_bytes: int = 0
    delimiter: str = Field(",", min_length=1, max_length=1)
    has_header: bool = True
    is_old_mac: bool = Field(False, description="lines end with a carriage return alone")
    packing: str = Field("", description="gzip, zstd, bzip2 or xz around it")
    dialect: Dialect = Field("", description="of a chat log")
