"""All steps in the order in which they run, their codes, and the presets."""

from collections.abc import Iterable

from app.datasets.steps.contract import ChosenStep, Step
from app.datasets.steps.copies import EXACT
from app.datasets.steps.near import NEAR
from app.datasets.steps.removing import LENGTH, MISSING
from app.datasets.steps.rewriting import UNICODE, WHITESPACE

# The order is the order of cleaning: unicode, markup, boilerplate, whitespace, missing, exact, length, language,
# quality, profanity, personal, near, contradictions, cap. Bits: 1, 32, 1024, 2, 4, 8, 16, 64, 128, 256, 512, 2048,
# 8192, 4096.
STEPS: dict[str, Step] = {step.name: step for step in (UNICODE, WHITESPACE, MISSING, EXACT, LENGTH, NEAR)}
CODES: dict[str, str] = {code: words for step in STEPS.values() for code, words in step.codes.items()}


def in_order(steps: Iterable[ChosenStep]) -> list[ChosenStep]:
    """The steps in the order of the catalogue, each name once (the last one given)."""
    by_name = {step.name: step for step in steps}
    return [by_name[name] for name in STEPS if name in by_name]
