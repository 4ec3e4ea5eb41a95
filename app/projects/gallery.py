"""The template gallery: an objective to start from for each application, in words that people change to their own."""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

GALLERY = Path(__file__).with_name("gallery.yaml")


@dataclass(frozen=True)
class Template:
    """One way to begin. `warning` is shown wherever the template is offered and on the objective's page."""

    key: str
    name: str
    summary: str
    icon: str
    kind_label: str
    task: str = ""
    audience: str = ""
    tone: str = ""
    must_never: list[str] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    bring: str = ""
    warning: str = ""


def _read() -> dict[str, Template]:
    entries = yaml.safe_load(GALLERY.read_text(encoding="utf-8"))
    return {entry["key"]: Template(**entry) for entry in entries}


TEMPLATES = _read()
FREE = TEMPLATES["free"]


def template(key: str) -> Template:
    """The template of that key; the free one where the key is no longer known."""
    return TEMPLATES.get(key, FREE)
