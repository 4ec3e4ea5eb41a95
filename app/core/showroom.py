"""/ui: every component in every state, for development and for the tests that photograph it. Off in production."""

import math
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.core.config import get_settings
from app.core.errors import NotFound
from app.core.templates import env, render

router = APIRouter(include_in_schema=False)
MEMORISING_FROM = 1860


def _curve() -> dict[str, Any]:
    """A learning curve with its memorising end, by formula, so that pictures are equal each time."""
    steps = list(range(4, 2904, 4))
    loss = [1.3 + 3.4 * math.exp(-s / 260) + 0.9 * math.exp(-s / 1500) + 0.06 * math.sin(s * 1.7) for s in steps]
    val = [
        [s, 1.62 + 3.2 * math.exp(-s / 250) + 0.9 * math.exp(-s / 1100) + max(0, s - MEMORISING_FROM) * 0.00035]
        for s in range(80, 2904, 80)
    ]
    return {"step": steps, "loss": loss, "val": val, "zone": MEMORISING_FROM}


def _only_in_development() -> None:
    if not get_settings().is_development:
        raise NotFound


@router.get("/ui")
def components(request: Request) -> Response:
    """The page of all components."""
    _only_in_development()
    curve = _curve()
    badge = env.globals["ui"].badge  # type: ignore[attr-defined]
    down, up = [3.0, 2.4, 2.1, 2.0, 1.95, 1.94], [3.0, 2.2, 2.0, 1.98, 2.2, 2.5]
    return render(
        request, "showroom/page.html", stage="overview",
        points=SimpleNamespace(
            train=list(zip(curve["step"], curve["loss"], strict=True)), val=curve["val"], zone=curve["zone"],
            losses=curve["loss"],
        ),
        runs=[
            ("Warm and chatty", badge("Learning well", "live"), down, "2.13", "Today, 09:28"),
            ("Short answers", badge("Memorised after step 1,500", "warn"), up, "2.02", "Yesterday"),
            ("First try", badge("Finished well", "good"), down, "1.94", "Tuesday"),
            ("Too fast", badge("Broke at step 212", "bad"), up[3:], "–", "Tuesday"),
        ],
        moment=datetime.now(UTC) - timedelta(minutes=2),
        **_rail(),
    )  # fmt: skip


def _rail() -> dict[str, Any]:
    """A journey with one node in each state."""
    states = [
        ("objective", "Objective", "done", "4 criteria"),
        ("data", "Data", "done", "51,124 rows"),
        ("clean", "Clean", "done", "48,210 left"),
        ("recipe", "Recipe", "done", "Small GPT"),
        ("train", "Train", "working", "47 %"),
        ("evaluate", "Evaluate", "look", "Look"),
        ("chat", "Chat", "todo", ""),
        ("refine", "Refine", "todo", ""),
        ("deploy", "Deploy", "todo", ""),
        ("monitor", "Monitor", "todo", ""),
    ]
    stages = [
        SimpleNamespace(name=n, label=label, url="/ui", state=state, fact=fact, share=0.47, why="", key=n[0])
        for n, label, state, fact in states
    ]
    project = SimpleNamespace(id="demo", name="Grandma’s kitchen", kind_label="Recipe helper")
    bottom = [
        SimpleNamespace(name=name, label=label, icon=icon, url="/ui")
        for name, label, icon in [
            ("overview", "Overview", "layout-dashboard"),
            ("data", "Data", "database"),
            ("train", "Train", "activity"),
            ("chat", "Chat", "message-circle"),
        ]
    ]
    rail = SimpleNamespace(project=project, projects=[project], stages=stages, bottom=bottom, stage="overview")
    return {"rail": rail}


@router.get("/ui/curve.json")
def history() -> dict[str, Any]:
    """The points that the page's chart loads."""
    _only_in_development()
    return _curve()
