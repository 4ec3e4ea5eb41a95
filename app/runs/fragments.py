"""The parts of the run page: one file and one root id each, used by the page and by the live stream alike."""

from typing import Any

from app.core.templates import gettext as _
from app.core.templates import render_text
from app.runs.view import RunView

# Name → root id. A page whose reader chose another sample or log filter leaves those two out of its stream.
FRAGMENTS = {
    "head": "run-head",
    "coach": "coach",
    "stats": "run-stats",
    "side": "run-side",
    "samples": "run-samples",
    "health": "run-health",
    "checkpoints": "run-checkpoints",
    "machine": "run-machine",
    "log": "run-log",
    "beat": "run-beat",
}
METHODS = {
    "lora": _("LoRA"),
    "last_layers": _("last layers"),
    "full": _("everything learns"),
    "scratch": _("from scratch"),
}


def base_name(view: RunView) -> str:
    """The base model as the page's header names it, with its size where known."""
    about = view.run.frozen.get("base_about") or {}
    count = view.run.plan.get("parameters") or view.run.estimate.get("parameters")
    size = f"{count / 1e6:.1f} M" if count else ""
    named = str(about.get("name") or (_("new GPT") if view.run.recipe["method"] == "scratch" else _("base model")))
    return f"{named}, {size}" if size else named


def context(view: RunView, *, may_edit: bool, level: str = "") -> dict[str, Any]:
    """What every fragment's template is given."""
    return {
        "view": view,
        "run": view.run,
        "may_edit": may_edit,
        "level": level,
        "method_names": METHODS,
        "base_name": base_name,
    }


def rendered(view: RunView, *, may_edit: bool) -> dict[str, str]:
    """Every fragment as the stream sends it: replacing its predecessor by id."""
    values = context(view, may_edit=may_edit)
    found = {}
    for name, root in FRAGMENTS.items():
        html = render_text(f"runs/_{name}.html", **values).strip()
        swap = "outerHTML" if name == "beat" else "outerMorph"
        found[name] = f'<hx-partial hx-target="#{root}" hx-swap="{swap}">{html}</hx-partial>'
    if view.is_over and may_edit:
        # Nobody has to ask any more to be told when it ends; what was typed there is left alone until then.
        found["notices"] = '<hx-partial hx-target="[data-until-end]" hx-swap="delete"></hx-partial>'
    return found
