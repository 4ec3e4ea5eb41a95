"""What the export form sends."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from app.core.forms import FormBase

_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")


class ExportForm(FormBase):
    """One model in one form; `repository` and `token` where it is also sent to a hub."""

    model: Annotated[str, Field(min_length=1, max_length=60)]
    kind: Literal["adapter", "merged", "gguf_f16", "gguf_q8_0", "gguf_q4_0"] = "merged"
    repository: Annotated[str, Field(max_length=200)] = ""
    token: Annotated[str, Field(max_length=500)] = ""

    @field_validator("repository")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if value and (not _REPOSITORY.match(value) or ".." in value):
            raise ValueError("Write it as owner/name, with letters, digits, dots and hyphens.")
        return value
