"""Traffic of a project's models: counted by day, errors apart, waiting times by rank, strangers kept out."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from app.core.db import utcnow
from app.core.errors import NotFound
from app.deployments import calls, keys
from app.deployments.models import ApiCall
from app.monitoring import service
from tests.factories import World, a_world


@pytest.fixture
def world(session: Session) -> World:
    return a_world(session)


def call(
    session: Session, world: World, *, days_ago: float = 0, status: int = 200, wait: float | None = None,
    key_id: str | None = None,
) -> None:  # fmt: skip
    session.add(
        ApiCall(
            workspace_id=world.workspace_id, project_id=world.project_id, key_id=key_id, endpoint="chat", status=status,
            prompt_tokens=10, completion_tokens=5, first_token_s=wait, at=utcnow() - timedelta(days=days_ago),
        )
    )  # fmt: skip


def test_two_weeks_by_day(session: Session, world: World) -> None:
    for _ in range(3):
        call(session, world, wait=0.2)
    call(session, world, days_ago=2, status=429)
    call(session, world, status=499)  # the program hung up
    call(session, world, days_ago=30)
    found = service.traffic(session, world.actor, world.project_id)
    assert (found.calls, found.errors, found.cancelled) == (5, 1, 1)
    assert (found.prompt_tokens, found.completion_tokens) == (50, 25)
    assert len(found.by_day) == service.DAYS
    assert found.by_day[-1][1:] == (4, 0)
    assert found.by_day[-3][1:] == (1, 1)
    _, total = service.calls(session, world.actor, world.project_id)
    assert total == 6


def test_waiting_times_are_by_nearest_rank(session: Session, world: World) -> None:
    for hundredths in range(1, 101):
        call(session, world, wait=hundredths / 100)
    found = service.traffic(session, world.actor, world.project_id)
    assert found.first_token_median_s == 0.5
    assert found.first_token_p95_s == 0.95
    assert service.quantile([], 0.5) is None
    assert service.quantile([3.0], 0.95) == 3.0


def test_what_a_key_was_used_for_is_of_thirty_days_and_its_budget_of_the_month(session: Session, world: World) -> None:
    key = keys.make(session, world.actor, world.project_id, name="a program", scopes=["chat"])[0]
    for days_ago in (0, 3, calls.DAYS + 0.5):
        call(session, world, days_ago=days_ago, key_id=key.id)
    used = calls.by_key(session, [key.id])[key.id]
    assert (used.calls, used.tokens, sum(used.days)) == (2, 30, 2)
    assert used.month_tokens == calls.tokens_this_month(session, key.id)


def test_pages_of_calls_are_newest_first(session: Session, world: World) -> None:
    for back in range(service.PER_PAGE + 3):
        call(session, world, days_ago=back / 100, status=200 + back)
    first, total = service.calls(session, world.actor, world.project_id)
    second, _ = service.calls(session, world.actor, world.project_id, page=2)
    assert total == service.PER_PAGE + 3
    assert [row.status for row in first][:2] == [200, 201]
    assert [row.status for row in second] == [250, 251, 252]


def test_strangers_see_nothing(session: Session, world: World) -> None:
    stranger = a_world(session, "Zoe").actor
    for asked in (service.traffic, service.calls):
        with pytest.raises(NotFound):
            asked(session, stranger, world.project_id)
