"""What a person chooses before an evaluation."""

from pydantic import Field

from app.core.forms import FormBase


class StartForm(FormBase):
    """Which model, on how many rows."""

    model_id: str = Field(min_length=1, max_length=40)
    row_limit: int = Field(200, ge=1, le=2000)
