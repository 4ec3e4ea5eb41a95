"""Routes without a domain: static files and the choice of the theme."""

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from app.core.assets import assets
from app.core.config import get_settings
from app.core.errors import NotFound

router = APIRouter()
YEAR_S = 365 * 24 * 3600


@router.api_route("/static/{version}/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
def static_file(request: Request, version: str, name: str) -> Response:
    """A static file; for ever with the current version in the address, checked each time with an old one."""
    files = assets(follow_changes=get_settings().is_development)
    found = files.get(name)
    if found is None:
        raise NotFound("This file does not exist. The page that asked for it may be older than the server: reload it.")
    # A short policy of their own: nothing in a static file may load anything, and the pages' long one is spared.
    headers = {"Vary": "Accept-Encoding", "Content-Security-Policy": "default-src 'none'"}
    is_current = version == files.version
    headers["Cache-Control"] = f"public, max-age={YEAR_S}, immutable" if is_current else "no-cache"
    body = found.body
    if found.gzipped is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = found.gzipped
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=found.media_type, headers=headers)


@router.get("/favicon.ico", include_in_schema=False)
def favicon() -> RedirectResponse:
    """Browsers ask for this name whatever the page says."""
    return RedirectResponse(assets().url("img/logo.svg"), status_code=302)


@router.post("/theme", include_in_schema=False)
def choose_theme(
    request: Request, theme: Annotated[Literal["device", "light", "dark"], Form()], next: Annotated[str, Form()] = "/"
) -> RedirectResponse:
    """Light, dark or as the device: kept in a cookie for a year, so that the server can write it into the page."""
    is_local = next.startswith("/") and not next.startswith(("//", "/\\"))
    response = RedirectResponse(next if is_local else "/", status_code=303)
    response.set_cookie("theme", theme, max_age=YEAR_S, samesite="lax", path="/")
    return response
