"""An error as the asker can read it: a page, a header for htmx, or JSON. Called by the error handlers of app.main."""

from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.core.errors import AppError, Invalid, TooMany, Unavailable
from app.core.templates import TEMPLATES, render

WITH_PAGE = {int(path.stem) for path in (TEMPLATES / "errors").glob("[0-9]*.html")}


def wants_json(request: Request) -> bool:
    """API paths always; others where JSON is asked for and HTML is not."""
    accept = request.headers.get("accept", "")
    return request.url.path.startswith("/v1/") or ("json" in accept and "html" not in accept)


def answer(request: Request, error: AppError, *, reference: str = "") -> Response:
    """The response for `error`; `reference` is the number under which the log keeps the trace."""
    headers = {"X-Error": quote(error.sentence)}
    if isinstance(error, TooMany | Unavailable):
        headers["Retry-After"] = str(round(error.retry_after_s))
    if wants_json(request):
        detail: dict[str, object] = {"message": error.sentence, "code": error.error_code, "param": error.param}
        if isinstance(error, Invalid):
            detail["fields"] = error.fields
        return JSONResponse({"error": detail}, status_code=error.status, headers=headers)
    if request.headers.get("HX-Request") and error.status != 422:
        # Not swapped: the page shows the sentence of the header in a toast.
        return Response(status_code=error.status, headers=headers)
    known = error.status if error.status in WITH_PAGE else 500
    here = request.url.path if request.method in ("GET", "HEAD") else "/projects"
    return render(
        request, f"errors/{known}.html", status=error.status, headers=headers,
        sentence=error.sentence, reference=reference, here=here, stage="",
        **{"status_number": error.status},
    )  # fmt: skip
