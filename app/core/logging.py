"""Logs: one line an event, JSON or for reading, without control characters and without secrets."""

import logging
import re
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

from app.core.config import get_settings

# Where the current request comes from: for log lines and the audit log. Empty outside of requests.
client_address: ContextVar[str] = ContextVar("client_address", default="")
_SECRETS = re.compile(r"\b(sk-[a-z0-9]{4})[A-Za-z0-9_\-]{8,}|\b(hf_)[A-Za-z0-9]{8,}|(://[^:/@\s]+:)[^@/\s]+(?=@)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HIDDEN = {"password", "token", "secret", "authorization", "cookie", "csrf_token"}


def redact(text: str) -> str:
    """The text without API keys, hub tokens and passwords in addresses."""
    return _SECRETS.sub(lambda found: f"{next(part for part in found.groups() if part)}…", text)


def one_line(text: str) -> str:
    """The text with every control character escaped, so that it cannot forge a second line."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(redact(value))
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return value if isinstance(value, int | float | bool | None) else one_line(redact(str(value)))


def _clean_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    trace = event.pop("exception", None)
    for key, value in list(event.items()):
        if not key.startswith("_"):
            event[key] = "…" if key.lower() in _HIDDEN else _clean(value)
    if trace:
        event["exception"] = redact(trace)
    return event


def configure(is_json: bool | None = None, level: int = logging.INFO) -> None:
    """Send the whole process's logs to stderr through one formatter. Called once by every process."""
    is_json = get_settings().log_json if is_json is None else is_json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso" if is_json else "%H:%M:%S", utc=is_json),
    ]
    renderer: Any
    if is_json:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, pad_level=False)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _clean_event,
            renderer,
        ],
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"
    # A person at a console needs no line for each message that a worker took.
    logging.getLogger("celery").setLevel(logging.NOTSET if is_json else logging.WARNING)
    for name in ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "alembic", "celery.redirected"):
        logging.getLogger(name).setLevel(logging.WARNING)
