"""What a person chooses before an evaluation."""

from pydantic import Field

from app.core.forms import FormBase
from app.evaluations.own import LONGEST


class StartForm(FormBase):
    """Which model, on how many rows, and beside which external model; `agreed` names what may leave the machine."""

    model_id: str = Field(min_length=1, max_length=40)
    row_limit: int = Field(200, ge=1, le=2000)
    external_id: str = Field("", max_length=20)
    agreed: str = Field("", max_length=100)


class IdealForm(FormBase):
    """What a model should answer to a test; empty: not known yet."""

    ideal: str = Field("", max_length=LONGEST)
