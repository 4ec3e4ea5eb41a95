"""One place where HTML is made: the Jinja2 environment and `render`, used by every route.

A template whose file name begins with `_` is a fragment and is sent as it is. Every other one is a page: whole for
a browser, and for htmx (`HX-Request-Type: partial`) only title, main area, rail and bottom bar.
Pass `project=` (the row) and `stage=` ("data", "train", …) so that the rail knows where the reader is.
"""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.runtime import Macro

from app.core import drawing, flash, numbers
from app.core.assets import assets
from app.core.config import get_settings
from app.core.glossary import TERMS
from app.core.translations import gettext, ngettext


class Missing(StrictUndefined):
    """A name that does not exist: false in a test, equal to nothing (so macros take dicts with optional keys), an error
    when printed."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return False

    def __hash__(self) -> int:  # type: ignore[override]
        return id(type(self))


TEMPLATES = Path(__file__).parents[2] / "templates"
THEMES = ("device", "light", "dark")
_csrf_token: ContextVar[str] = ContextVar("csrf_token", default="")
Shell = Callable[[Request, dict[str, Any]], dict[str, Any]]


def asset(name: str) -> str:
    """The address of a static file, with the hash of the tree in it."""
    return assets(follow_changes=get_settings().is_development).url(name)


def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=Missing, trim_blocks=True,
        lstrip_blocks=True, extensions=["jinja2.ext.do"], auto_reload=get_settings().is_development,
    )  # fmt: skip
    env.globals |= {"_": gettext, "gettext": gettext, "ngettext": ngettext, "asset": asset}
    for name in (
        "number",
        "loss",
        "compact",
        "percent",
        "plain",
        "size",
        "duration",
        "ago",
        "clock",
        "in_full",
        "later",
        "initials",
    ):
        env.filters[name] = getattr(numbers, name)
    env.globals |= {"spark_path": drawing.spark_path, "curve": drawing.curve, "glossary": TERMS}
    env.globals["csrf_token_now"] = lambda: _csrf_token.get()
    # Every macro of templates/_ui, in one namespace that macros and pages share.
    kit = SimpleNamespace()
    env.globals["ui"] = kit
    for path in sorted((TEMPLATES / "_ui").glob("[!_]*.html")):
        module = env.get_template(f"_ui/{path.name}").module
        for name in dir(module):
            if isinstance(macro := getattr(module, name), Macro):
                setattr(kit, name, macro)
    return env


env = _environment()


def _plain_shell(request: Request, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "rail": SimpleNamespace(
            project=None, projects=[], stages=[], bottom=[], stage=context.get("stage"), is_working=False
        )
    }


_shell: Shell = _plain_shell


def set_shell(shell: Shell) -> None:
    """Who fills the rail: called once by app.main with the overview's journey, which lies above this module."""
    global _shell
    _shell = shell


def render(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **context: Any
) -> Response:
    """A page or a fragment as a response (see the module's docstring for which)."""
    is_fragment = template.rsplit("/", 1)[-1].startswith("_")
    is_partial = request.headers.get("HX-Request-Type") == "partial"
    theme = request.cookies.get("theme", "device")
    context |= {
        "request": request,
        "lang": "en-GB",
        "theme": theme if theme in THEMES else "device",
        "csrf_token": getattr(request.state, "csrf_token", ""),
        "actor": context.get("actor") or getattr(request.state, "actor", None),
        "partial": is_partial,
        "toasts": [],
    }
    _csrf_token.set(context["csrf_token"])
    toast = None
    if not is_fragment:
        toast = flash.pending(request.cookies)
        context["toasts"] = [toast] if toast else []
        context = _plain_shell(request, context) | _shell(request, context) | context
    text = env.get_template(template).render(context)
    if is_partial and not is_fragment and text.startswith("<!doctype"):
        # A page without the shell cannot go into the main area: load it whole.
        return Response(status_code=204, headers={"HX-Redirect": str(request.url.path)})
    response = HTMLResponse(text, status_code=status, headers=headers)
    response.headers["Vary"] = "HX-Request-Type"
    response.headers.setdefault("Cache-Control", "no-store" if not is_fragment else "no-cache")
    if status == 422:
        # A form that is shown again has no address of its own: reload and Back would ask for one that only takes POST.
        response.headers["HX-Push-Url"] = "false"
    if toast:
        response.delete_cookie(flash.COOKIE, path="/")
    return response


def render_text(template: str, **context: Any) -> str:
    """A fragment as text, for streams and for services that store what they show. No request in it."""
    return env.get_template(template).render(context)
