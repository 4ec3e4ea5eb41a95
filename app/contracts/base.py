"""The strict base of every contract: unknown fields refused, NaN and infinity refused."""

from pydantic import BaseModel, ConfigDict


class Contract(BaseModel):
    """A value that crosses a process border. Unknown fields and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True)
