"""Forms: the request's fields as text, and one pydantic model that turns them into values or sentences."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict, ValidationError

from app.core.errors import Invalid
from app.core.numbers import TwoMeanings, decimal

FormModel = TypeVar("FormModel", bound="FormBase")
_SENTENCES = {
    "missing": "This is needed.",
    "string_too_short": "This is needed.",
    "extra_forbidden": "This field is not known here.",
    "int_parsing": "Write a whole number.",
    "int_from_float": "Write a whole number.",
    "float_parsing": "Write a number.",
    "finite_number": "Write a finite number.",
    "literal_error": "Choose one of the options.",
    "enum": "Choose one of the options.",
    "bool_parsing": "Choose yes or no.",
}


class FormBase(BaseModel):
    """Base of every form: surrounding blanks cut, unknown fields and non-finite numbers refused.

    A validator that raises ValueError("A whole sentence.") has that sentence shown under the field.
    """

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)


async def form_values(request: Request) -> dict[str, Any]:
    """The fields of a posted form: text, or a list of texts where a name occurs several times."""
    values: dict[str, Any] = {}
    form = await request.form()
    for name in form:
        texts = [item for item in form.getlist(name) if isinstance(item, str)]
        if name != "csrf_token" and texts:
            values[name] = texts[0] if len(texts) == 1 else texts
    return values


FormValues = Annotated[dict[str, Any], Depends(form_values)]


def as_written(value: Any) -> Any:
    """A number as people write it, for a form's validator; what is no number is left for its own sentence.

    Raises TwoMeanings, whose sentence is shown.
    """
    if not isinstance(value, str):
        return value
    try:
        return decimal(value)
    except TwoMeanings:
        raise
    except ValueError:
        return value


def checked(model: type[FormModel], values: Mapping[str, Any]) -> tuple[FormModel | None, dict[str, str]]:
    """The filled form and no errors, or None and a sentence for each wrong field ("" for the form as a whole)."""
    try:
        return model.model_validate(dict(values)), {}
    except ValidationError as error:
        return None, sentences(error)


def filled(model: type[FormModel], values: Mapping[str, Any]) -> FormModel:
    """The filled form, for buttons whose page has no form to be shown again. Raises Invalid with its sentences."""
    form, errors = checked(model, values)
    if form is None:
        raise Invalid(fields=errors)
    return form


def sentences(error: ValidationError) -> dict[str, str]:
    """Field name → what is wrong with it. What was typed is never repeated."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"])
        found.setdefault(name, _sentence(item["type"], item["msg"], item.get("ctx", {})))
    return found


def _sentence(kind: str, message: str, bounds: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("greater_than_equal", "greater_than"):
        return f"This must be at least {bounds.get('ge', bounds.get('gt'))}."
    if kind in ("less_than_equal", "less_than"):
        return f"This must be at most {bounds.get('le', bounds.get('lt'))}."
    if kind == "string_too_long":
        return f"This may have at most {bounds['max_length']} characters."
    if kind == "string_too_short" and bounds.get("min_length", 1) > 1:
        return f"This needs at least {bounds['min_length']} characters."
    return _SENTENCES.get(kind, "This value does not fit here.")
