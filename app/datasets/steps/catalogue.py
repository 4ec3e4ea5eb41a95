"""All steps in the order in which they run, their codes, and the presets."""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from app.datasets.steps.balance import CAP
from app.datasets.steps.boilerplate import BOILERPLATE
from app.datasets.steps.contract import ChosenStep, Step
from app.datasets.steps.contradictions import CONTRADICTIONS
from app.datasets.steps.copies import EXACT
from app.datasets.steps.language import LANGUAGE
from app.datasets.steps.markup import MARKUP
from app.datasets.steps.near import NEAR
from app.datasets.steps.personal_step import PERSONAL
from app.datasets.steps.profanity import PROFANITY
from app.datasets.steps.quality import QUALITY
from app.datasets.steps.removing import LENGTH, MISSING
from app.datasets.steps.rewriting import UNICODE, WHITESPACE
from app.datasets.steps.tokens import TOKENS

# The order is the order of cleaning: unicode, markup, boilerplate, whitespace, missing, exact, length, language,
# quality, profanity, personal, tokens, near, contradictions, cap. Bits: 1, 32, 1024, 2, 4, 8, 16, 64, 128, 256, 512,
# 16384, 2048, 8192, 4096. Tokens is the last that looks at one row: it counts the final text.
STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        UNICODE, MARKUP, BOILERPLATE, WHITESPACE, MISSING, EXACT, LENGTH, LANGUAGE, QUALITY, PROFANITY, PERSONAL,
        TOKENS, NEAR, CONTRADICTIONS, CAP,
    )
}  # fmt: skip
CODES: dict[str, str] = {code: words for step in STEPS.values() for code, words in step.codes.items()}


# What one click chooses: step to mode. Steps that only mark leave every row as it is.
PRESETS: dict[str, dict[str, Literal["on", "mark"]]] = {
    "light": {"unicode": "on", "whitespace": "on", "missing": "on", "exact": "on"},
    "standard": {
        "unicode": "on", "markup": "on", "whitespace": "on", "missing": "on", "exact": "on", "length": "on",
        "language": "mark", "quality": "mark", "personal": "on", "near": "on",
    },
    "strict": {
        "unicode": "on", "markup": "on", "whitespace": "on", "missing": "on", "exact": "on", "length": "on",
        "language": "mark", "quality": "on", "profanity": "on", "personal": "on", "near": "on",
    },
}  # fmt: skip


def of_preset(name: str) -> list[ChosenStep]:
    """The steps of a preset, with their default parameters. Raises KeyError."""
    modes = PRESETS[name]
    return [
        ChosenStep(name=n, version=STEPS[n].version, mode=mode, params=STEPS[n].params().model_dump(mode="json"))
        for n, mode in modes.items()
    ]


def secret_params(step: Step) -> list[str]:
    """Parameters that no form shows and no manifest holds."""
    return _noted(step, "is_secret")


def hidden_params(step: Step) -> list[str]:
    """Parameters that no form shows: secret ones, and those that are filled in from the project."""
    return [*secret_params(step), *_noted(step, "is_given")]


def _noted(step: Step, note: str) -> list[str]:
    return [
        name
        for name, info in step.params.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get(note)
    ]


def salted(chosen: ChosenStep, salt: str) -> ChosenStep:
    """The step with the project's salt, where it takes one."""
    names = secret_params(STEPS[chosen.name])
    return chosen.model_copy(update={"params": {**chosen.params, **dict.fromkeys(names, salt)}}) if names else chosen


def published(chosen: ChosenStep) -> dict[str, Any]:
    """The step as a manifest names it: of a salt only its fingerprint, so that another one makes another version; of a
    tokenizer its name and fingerprint, not where it lies on this machine."""
    params = dict(chosen.params)
    for name in secret_params(STEPS[chosen.name]):
        if params.get(name):
            params[name] = "sha256:" + hashlib.sha256(str(params[name]).encode()).hexdigest()[:16]
    if params.get("reading"):
        params["reading"] = {key: value for key, value in params["reading"].items() if key != "tokenizer_file"}
    return {**chosen.model_dump(mode="json"), "params": params}


def in_order(steps: Iterable[ChosenStep]) -> list[ChosenStep]:
    """The steps in the order of the catalogue, each name once (the last one given)."""
    by_name = {step.name: step for step in steps}
    return [by_name[name] for name in STEPS if name in by_name]
