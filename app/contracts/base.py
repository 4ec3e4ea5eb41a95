"""The strict base of every contract: unknown fields refused, NaN and infinity refused."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def storable(text: str) -> str:
    """The text with a mark for each NUL: a model may say any byte, and PostgreSQL keeps no NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


Said = Annotated[str, AfterValidator(storable)]
"""What a model has said."""


class Contract(BaseModel):
    """A value that crosses a process border. Unknown fields and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True)
