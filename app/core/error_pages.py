"""Every error becomes one answer here: a page, a fragment for htmx, JSON, or the shape that OpenAI's clients read."""

import json
import logging
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from app.core import errors
from app.core.errors import AppError
from app.core.logging import one_line, redact
from app.core.templates import render
from app.core.web import SAFE_METHODS

log = logging.getLogger(__name__)

# Statuses with a page of their own; the others borrow one.
PAGES = frozenset({400, 403, 404, 409, 410, 413, 422, 429, 500, 503, 507})
_BY_STATUS: dict[int, type[AppError]] = {
    400: errors.BadRequest,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    413: errors.TooLarge,
    429: errors.TooMany,
    503: errors.Unavailable,
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
SENTENCES = {
    "missing": "This is needed.",
    "json_invalid": "The body is not valid JSON.",
    "extra_forbidden": "This field is not known here.",
    "finite_number": "This must be a finite number.",
    "string_unicode": "The text holds half a surrogate pair, which cannot be stored.",
}


class MethodNotAllowed(AppError):
    status, code, default = 405, "method_not_allowed", "This address does not take that kind of request."


class Unexpected(AppError):
    """An exception that nobody foresaw. Its trace is in the log under the request's id, never in the answer."""

    status, code = 500, "internal_error"


def install(app: FastAPI, *, on_refusal: Callable[[Request, AppError], None]) -> None:
    """Register the handlers; `on_refusal` is told of every Forbidden, for the audit log."""

    def refuse(request: Request, error: Exception) -> Response:
        known = as_app_error(error)
        if isinstance(known, errors.Forbidden):
            on_refusal(request, known)
        return answer(request, known)

    for kind in (AppError, RequestValidationError, HTTPException, DataError, OperationalError, OverflowError):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(UnicodeEncodeError, refuse)


async def unexpected(request: Request, error: Exception) -> Response:
    """The answer to an exception that nobody handled: the reference number and nothing else."""
    if isinstance(error, AppError):
        return await run_in_threadpool(answer, request, error)
    log.exception("unexpected error", exc_info=error)
    return await run_in_threadpool(answer, request, Unexpected())


def as_app_error(error: Exception) -> AppError:
    """The noun for any exception that has a handler."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            return MethodNotAllowed()
        return _BY_STATUS.get(error.status_code, errors.BadRequest)()
    if isinstance(error, OperationalError):
        if _is_disk_full(error.orig):
            log.error("the disk of the database is full")
            return errors.DiskFull()
        log.error("database out of reach: %s", one_line(redact(str(error.orig)))[:500])
        return errors.Unavailable("The database is out of reach at the moment. Your work is safe; try again shortly.")
    # A number past 64 bits, half a surrogate pair, a NUL for PostgreSQL: what a column cannot hold.
    log.info("value refused: %s", type(error).__name__)
    return errors.Invalid(
        "One of the values cannot be stored: a number is too large or a text holds broken characters."
    )


def _is_disk_full(error: BaseException | None) -> bool:
    """What SQLite and PostgreSQL say when the last byte is taken."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL or getattr(error, "sqlstate", "") == "53100"


def _from_validation(error: RequestValidationError) -> AppError:
    """Neither what was sent nor pydantic's context is repeated: it may be a password."""
    found = error.errors()
    if any(item["loc"][:1] == ("path",) for item in found):
        return errors.NotFound()
    fields: dict[str, str] = {}
    for item in found:
        name = ".".join(str(part)[:40] for part in item["loc"][1:] if item["type"] != "json_invalid")
        fields.setdefault(one_line(name)[:120], _sentence(item))
    return errors.Invalid(fields=fields)


def _sentence(item: dict[str, Any]) -> str:
    kind = str(item["type"])
    if kind in SENTENCES:
        return SENTENCES[kind]
    bounds = {key: item.get("ctx", {}).get(key) for key in ("ge", "gt", "le", "lt", "min_length", "max_length")}
    if (bound := bounds.get("ge") if bounds.get("ge") is not None else bounds.get("gt")) is not None:
        return f"This must be at least {bound}."
    if (bound := bounds.get("le") if bounds.get("le") is not None else bounds.get("lt")) is not None:
        return f"This must be at most {bound}."
    if bounds.get("min_length") is not None:
        return "This is too short."
    if bounds.get("max_length") is not None:
        return "This is too long."
    return "This value does not fit here."


def wants_html(request: Request) -> bool:
    """Whether a person looks at the answer."""
    return "hx-request" in request.headers or "text/html" in request.headers.get("accept", "")


def answer(request: Request, error: AppError) -> Response:
    """The response for an error, in the form that the asker can read."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    headers: dict[str, str] = {}
    if isinstance(error, errors.TooMany | errors.Unavailable):
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if request.url.path.startswith("/v1/"):
        return _for_openai(error, headers)
    if not wants_html(request):
        body: dict[str, Any] = {"code": error.error_code, "message": error.sentence, "request_id": request_id}
        if error.param:
            body["param"] = error.param
        if isinstance(error, errors.Invalid) and error.fields:
            body["fields"] = error.fields
        return JSONResponse({"error": body}, error.status, headers)
    if isinstance(error, errors.Unauthenticated):
        return _to_sign_in(request)
    return _page(request, error, request_id, headers)


def _for_openai(error: AppError, headers: dict[str, str]) -> Response:
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error") if error.status < 500 else "server_error"
    param = error.param
    message = error.sentence
    if isinstance(error, errors.Invalid) and error.fields and not param:
        param = next(iter(error.fields))
        message = "; ".join(f"{name}: {text}" if name else text for name, text in error.fields.items())
    if error.status in (408, 409, 429) or error.status >= 500:
        headers["x-should-retry"] = (
            "true" if error.status in (429, 503) or error.error_code == "in_progress" else "false"
        )
    body = {"message": message, "type": kind, "param": param, "code": error.error_code}
    return JSONResponse({"error": body}, error.status, headers)


def _to_sign_in(request: Request) -> Response:
    """To the sign-in page and back again; for htmx by a header, because a redirect would land in the fragment."""
    path = request.url.path
    if request.method in SAFE_METHODS and request.url.query:
        path += f"?{request.url.query}"
    if request.method not in SAFE_METHODS:
        path = "/"
    target = f"/sign-in?next={quote(path, safe='/')}" if path != "/" else "/sign-in"
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": target})
    return RedirectResponse(target, 303)


def _page(request: Request, error: AppError, request_id: str, headers: dict[str, str]) -> Response:
    """The page of this status. What cannot be swapped in shows the sentence of `X-Error` in a toast instead."""
    headers["X-Error"] = quote(error.sentence)
    if error.status == 422 and "hx-request" in request.headers and "hx-boosted" not in request.headers:
        notice = {"show-toast": {"title": "That did not work.", "text": error.sentence, "tone": "bad"}}
        return Response(status_code=422, headers=headers | {"HX-Reswap": "none", "HX-Trigger": json.dumps(notice)})
    # The address of a form's answer is no page: a reload of it would be refused.
    headers["HX-Push-Url"] = "false"
    page = error.status if error.status in PAGES else (400 if error.status < 500 else 500)
    return render(
        request,
        f"errors/{page}.html",
        status=error.status,
        headers=headers,
        status_number=error.status,
        sentence=error.sentence,
        reference=request_id,
        here=_way_back(request),
    )


def _way_back(request: Request) -> str:
    """The page that was asked for, or, for a form, the page of ours that it stood on."""
    if request.method in SAFE_METHODS:
        return request.url.path
    before = urlsplit(request.headers.get("referer", ""))
    is_ours = before.netloc == request.headers.get("host") and before.path[:1] == "/" and before.path[1:2] not in "/\\"
    return before.path + (f"?{before.query}" if before.query else "") if is_ours else "/projects"
