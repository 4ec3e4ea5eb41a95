"""The database: one engine a process, short transactions, SQLite and PostgreSQL alike."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, DateTime, Engine, MetaData, Text, TypeDecorator, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from app.core.config import ROOT, get_settings

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(naming_convention=_NAMES)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on both databases (SQLite keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime cannot be stored; use utcnow()")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# What a path below the home, or of a file that ships with the product, is stored as: both move with a backup.
_HOME, _PRODUCT = "{home}", "{product}"
# The only values of stored JSON that are paths of ours; nothing that people write stands under these names.
_PLACES = frozenset({"base_dir", "dir", "tokenizer_file"})


def _portable(path: str) -> str:
    for mark, root in ((_HOME, get_settings().home_dir), (_PRODUCT, ROOT)):
        if path.startswith(f"{root}/"):
            return mark + path[len(str(root)) :]
    return path


def _located(path: str) -> str:
    for mark, root in ((_HOME, get_settings().home_dir), (_PRODUCT, ROOT)):
        if path.startswith(f"{mark}/"):
            return f"{root}{path[len(mark) :]}"
    return path


def _in_places(value: Any, change: Callable[[str], str]) -> Any:
    """The JSON value with `change` made to every path in it."""
    if isinstance(value, list):
        return [_in_places(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: change(item) if key in _PLACES and isinstance(item, str) else _in_places(item, change)
        for key, item in value.items()
    }


class HomePath(TypeDecorator[str]):
    """A path as text, stored so that it is still right when the home lies elsewhere."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else _portable(value)

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else _located(value)


class PlacedJSON(TypeDecorator[Any]):
    """JSON whose paths (ModelFiles, tokenizer files) are stored so that they are still right in another home."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return _in_places(value, _portable)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return _in_places(value, _located)


def new_id() -> str:
    """A random id of 20 characters (100 bits) without look-alike letters."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(20))


def utcnow() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def make_engine(url: str) -> Engine:
    """An engine with the product's rules: on SQLite WAL, foreign keys, a busy wait and BEGIN IMMEDIATE for writers.

    Deferred transactions that turn into writers fail at once with "database is locked", however long the busy
    wait is; a writer therefore takes its lock at BEGIN.
    """
    if not url.startswith("sqlite"):
        options = "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000"
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=30, connect_args={"options": options})
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, pool_size=20, max_overflow=40)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        # What is deleted is overwritten with zeros: a forgotten source must not be found in the file.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=30000",
            "secure_delete=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        is_reader = connection.get_execution_options().get("reader", False)
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    return engine


@lru_cache
def get_engine() -> Engine:
    """The engine of this process, made on first use (after any fork or spawn)."""
    return make_engine(get_settings().database)


@lru_cache
def _sessions() -> tuple[sessionmaker[Session], sessionmaker[Session]]:
    engine = get_engine()
    writer = sessionmaker(engine, expire_on_commit=False)
    reader = sessionmaker(engine.execution_options(reader=True), expire_on_commit=False, autoflush=False)
    return writer, reader


def forget_engine() -> None:
    """Close the engine and forget it: after a fork, and between tests."""
    if get_engine.cache_info().currsize:
        get_engine().dispose()
    _sessions.cache_clear()
    get_engine.cache_clear()


def empty_log() -> None:
    """On SQLite, bring the write-ahead log into the database and empty it: old pages in it hold what was deleted.

    Whoever still reads keeps it from being emptied now; the next checkpoint does it then.
    """
    if get_engine().dialect.name != "sqlite":
        return
    connection = get_engine().raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


@contextmanager
def transaction() -> Iterator[Session]:
    """A write transaction: committed at the end, rolled back on any exception. Keep it short."""
    with _sessions()[0]() as session, session.begin():
        yield session


@contextmanager
def reading() -> Iterator[Session]:
    """A read transaction, always rolled back. Rows stay usable after it."""
    with _sessions()[1]() as session:
        yield session
