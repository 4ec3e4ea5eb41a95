"""The forms of the data pages and what they mean."""

from typing import Any, Literal

from pydantic import Field

from app.contracts.conversation import Role
from app.core.forms import FormBase
from app.datasets.mapping import Mapping, Repair, Shape, column
from app.datasets.options import ReadOptions
from app.datasets.splitting import SplitSettings

TARGETS = ("prompt", "answer", "system", "text")


class PasteForm(FormBase):
    """Pasted text."""

    text: str = Field("", max_length=2_000_000)
    name: str = Field("", max_length=100)


class ReadingForm(FormBase):
    """How a file is read. Only the fields that were sent change."""

    format: str | None = Field(None, max_length=10)
    encoding: str | None = Field(None, max_length=40)
    delimiter: Literal["", ",", ";", "tab", "|", ":", "~", "^"] | None = None
    has_header: bool | None = None
    short_rows: str | None = Field(None, max_length=20)
    long_rows: str | None = Field(None, max_length=20)
    wrong_encoding: str | None = Field(None, max_length=20)
    open_quotes: str | None = Field(None, max_length=20)
    bad_json: str | None = Field(None, max_length=20)
    doubled_keys: str | None = Field(None, max_length=20)
    mistyped_columns: str | None = Field(None, max_length=20)
    text_unit: str | None = Field(None, max_length=20)
    sheet: str | None = Field(None, max_length=200)
    assistant: str | None = Field(None, max_length=80)
    gap_minutes: int | None = Field(None, ge=1, le=7 * 24 * 60)
    password: str = Field("", max_length=200, repr=False)

    def changes(self) -> dict[str, Any]:
        """The options that change, checked. Raises ValidationError for a value that does not exist."""
        found = {name: value for name, value in self.model_dump(exclude={"password"}).items() if value is not None}
        if found.get("delimiter") == "tab":
            found["delimiter"] = "\t"
        ReadOptions.model_validate(found)
        return found


class MappingForm(FormBase):
    """Which column is what. A `…_template` counts where its column is not chosen."""

    shape: Shape = "pair"
    messages: str = Field("", max_length=200)
    history: str = Field("", max_length=200)
    label: str = Field("", max_length=200)
    prompt_column: str = Field("", max_length=200)
    answer_column: str = Field("", max_length=200)
    system_column: str = Field("", max_length=200)
    text_column: str = Field("", max_length=200)
    prompt_then: str = Field("", max_length=200)
    answer_then: str = Field("", max_length=200)
    system_then: str = Field("", max_length=200)
    text_then: str = Field("", max_length=200)
    chosen: str = Field("", max_length=200)
    rejected: str = Field("", max_length=200)
    rating: str = Field("", max_length=200)
    cell: str = Field("", max_length=200)
    repair_code: list[str] = Field(default_factory=list, max_length=20)
    repair: list[Repair] = Field(default_factory=list, max_length=20)
    prompt_template: str = Field("", max_length=8000)
    answer_template: str = Field("", max_length=8000)
    system_template: str = Field("", max_length=8000)
    text_template: str = Field("", max_length=8000)
    speaker: list[str] = Field(default_factory=list, max_length=50)
    role: list[Role | Literal[""]] = Field(default_factory=list, max_length=50)

    def mapping(self) -> Mapping:
        """The mapping that the form says; fields of other shapes are left out."""
        values = {target: self._template(target) for target in TARGETS}
        common: dict[str, Any] = {
            "shape": self.shape,
            "cell": self.cell,
            "roles": {speaker: role for speaker, role in zip(self.speaker, self.role, strict=False) if role},
            "repairs": {code: choice for code, choice in zip(self.repair_code, self.repair, strict=False) if choice},
        }
        match self.shape:
            case "messages":
                return Mapping(**common, messages=self.messages, system=values["system"], label=self.label)
            case "preference":
                return Mapping(
                    **common, messages=self.messages, prompt=values["prompt"], system=values["system"],
                    chosen=self.chosen, rejected=self.rejected, label=self.label,
                )  # fmt: skip
            case "rated":
                return Mapping(
                    **common, messages=self.messages, prompt=values["prompt"], answer=values["answer"],
                    system=values["system"], rating=self.rating,
                )  # fmt: skip
            case "text":
                return Mapping(**common, text=values["text"], label=self.label)
            case "label":
                chosen = self.answer_column or self.label
                return Mapping(
                    **common, prompt=values["prompt"], answer=column(chosen), system=values["system"], label=chosen
                )
            case _:
                # Coming from "a text and its label" the label was the answer.
                is_label = not values["answer"] and bool(self.label)
                return Mapping(
                    **common, prompt=values["prompt"], system=values["system"],
                    answer=column(self.label) if is_label else values["answer"],
                    history=self.history, label="" if is_label else self.label,
                )  # fmt: skip

    def _template(self, target: str) -> str:
        chosen, then = getattr(self, f"{target}_column"), getattr(self, f"{target}_then")
        if not chosen:
            return str(getattr(self, f"{target}_template"))
        return column(chosen) + (f"\n\n{column(then)}" if then else "")


class RepairForm(FormBase):
    """What is done about the rows of one check."""

    code: str = Field(max_length=40)
    repair: Repair = ""


class SplitForm(FormBase):
    """Shares of validation and test in per cent, their bounds in rows, and what keeps rows together."""

    validation_percent: float = Field(5, ge=0, le=50)
    test_percent: float = Field(5, ge=0, le=50)
    seed: int = Field(1, ge=0, le=2**31 - 1)
    is_stratified: bool = False
    group_columns: list[str] = Field(default_factory=list, max_length=5)
    time_column: str = Field("", max_length=200)
    validation_rows_min: int = Field(50, ge=0, le=100_000)
    validation_rows_max: int = Field(2000, ge=1, le=1_000_000)

    def settings(self) -> SplitSettings:
        """The split that the form says. Raises ValidationError."""
        return SplitSettings.model_validate(self.model_dump())


def listed(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The form's values with `names` always as lists, however many there were."""
    return {**values, **{n: v if isinstance(v, list) else [v] for n in names if (v := values.get(n)) is not None}}
