"""What every route uses: the request's database session, committed at the edge before the answer leaves."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.core.db import reading, transaction

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def request_session(request: Request) -> Iterator[Session]:
    """A read transaction for safe methods, a write transaction (committed here) for the others."""
    with reading() if request.method in SAFE_METHODS else transaction() as session:
        yield session


# scope="function": the commit happens before the response is sent, so a redirected page finds the row.
SessionDep = Annotated[Session, Depends(request_session, scope="function")]


def is_partial(request: Request) -> bool:
    """Whether htmx asks for a part of a page."""
    return request.headers.get("hx-request-type") == "partial"
