"""One short message carried over a redirect in a cookie and shown once as a toast."""

import base64
import binascii
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

COOKIE = "flash"
Tone = Literal["good", "warn", "bad"]


@dataclass(frozen=True)
class Toast:
    """A title, one line, and at most one way back: a local address that a POST undoes the change at."""

    title: str
    text: str = ""
    tone: Tone = "good"
    undo_url: str = ""


def flash(response: Any, title: str, text: str = "", *, tone: Tone = "good", undo_url: str = "") -> None:
    """Show a toast on the next page that this visitor opens."""
    packed = base64.urlsafe_b64encode(json.dumps(asdict(Toast(title, text, tone, undo_url))).encode())
    response.set_cookie(COOKIE, packed.decode(), max_age=60, httponly=True, samesite="lax", path="/")


def pending(cookies: dict[str, str]) -> Toast | None:
    """The message that waits in the cookies, or None where there is none or it cannot be read."""
    packed = cookies.get(COOKIE)
    if not packed:
        return None
    try:
        toast = Toast(**json.loads(base64.urlsafe_b64decode(packed)))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        return None
    if toast.tone not in ("good", "warn", "bad") or not all(isinstance(v, str) for v in asdict(toast).values()):
        return None
    is_local = toast.undo_url.startswith("/") and not toast.undo_url.startswith(("//", "/\\"))
    return toast if is_local or not toast.undo_url else None
