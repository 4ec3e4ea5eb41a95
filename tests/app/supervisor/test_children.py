"""What a child of the supervisor is told of its surroundings."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from app.core.config import get_settings
from app.supervisor import up
from app.supervisor.children import Child, Console
from app.supervisor.up import Stack

CANARIES = ("GPT_BUILDER_DATABASE_URL", "GPT_BUILDER_REDIS_URL_WORKER", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")


class Heard(Console):
    """Keeps the lines instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def plain(self, text: str = "") -> None:
        self.said.append(text)


@pytest.mark.parametrize("secluded", [True, False])
def test_a_secluded_process_knows_no_secret(monkeypatch: pytest.MonkeyPatch, secluded: bool) -> None:
    for name in CANARIES:
        monkeypatch.setenv(name, "canary")
    console = Heard()
    show = "import os; print(' '.join(os.environ)); print('told', os.environ['MARK'])"
    child = Child("x", [sys.executable, "-c", show], {"MARK": "yes"}, secluded=secluded)

    async def once() -> None:
        def stop_after_this(started: Child) -> None:
            started.is_stopping = True

        await child.keep(console, stop_after_this)

    asyncio.run(once())
    text = "\n".join(console.said)
    assert "told yes" in text
    assert [name in text for name in CANARIES] == [not secluded] * len(CANARIES)


def test_a_process_gives_way_in_its_session_too() -> None:
    console = Heard()
    show = "import os; print('level', os.nice(0)); print('session', open('/proc/self/autogroup').read())"
    child = Child("x", [sys.executable, "-c", show], niceness=7)

    async def once() -> None:
        await child.keep(console, lambda started: setattr(started, "is_stopping", True))

    asyncio.run(once())
    text, level = "\n".join(console.said), os.nice(0) + 7
    assert f"level {level}" in text
    if Path("/proc/self/autogroup").exists():
        assert f"nice {level}" in text


def test_only_those_who_need_them_are_told_where_queue_and_database_are(home: Path) -> None:
    stack = Stack(get_settings(), home, Heard())
    stack.environment["GPT_BUILDER_REDIS_URL"] = "canary"

    async def started() -> dict[str, Child]:
        for name, secluded in (("model server", True), ("web", False)):
            stack.start(name, sys.executable, "-c", "", secluded=secluded)
        found = {child.name: child for child in stack.children}
        for task in stack.tasks:
            task.cancel()
        return found

    children = asyncio.run(started())
    assert "canary" not in children["model server"].environment.values()
    assert children["model server"].environment["GPT_BUILDER_HOME"] == str(home)
    assert "canary" in children["web"].environment.values()


@pytest.mark.parametrize("is_open", [True, False])
def test_the_token_is_said_once_more_below_the_lines_of_the_start(
    monkeypatch: pytest.MonkeyPatch, home: Path, is_open: bool
) -> None:
    monkeypatch.setattr(up, "REPEAT_AFTER_S", 0)
    console = Heard()
    asked: list[str] = []

    def still_opens(token: str) -> bool:
        asked.append(token)
        return is_open

    asyncio.run(up.repeat(Stack(get_settings(), home, console), "http://localhost:1", "some-token", still_opens))
    assert asked == ["some-token"]
    assert any("some-token" in line for line in console.said) == is_open


def test_the_long_advice_of_redis_stays_out_of_the_console() -> None:
    console = Heard()
    advice = "1:C 21 Nov 2026 10:00:00.000 # WARNING Memory overcommit must be enabled! Without it, a save may fail."
    older = "1:M 21 Nov 2026 10:00:00.000 # WARNING overcommit_memory is set to 0! Background save may fail."
    child = Child("redis", [sys.executable, "-c", f"print({advice!r}); print({older!r}); print('ready')"])

    async def once() -> None:
        def stop_after_this(started: Child) -> None:
            started.is_stopping = True

        await child.keep(console, stop_after_this)

    asyncio.run(once())
    assert [line.split("| ")[1] for line in console.said] == ["ready"]
