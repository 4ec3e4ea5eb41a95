"""Secrets at rest and the key file."""

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from app.accounts.models import Setting
from app.core import security
from app.core.config import get_settings
from app.core.db import transaction


@pytest.fixture(autouse=True)
def fresh_keys(home: Path) -> None:
    security._keys.cache_clear()


def test_a_dump_of_the_database_holds_no_secret(database: Path) -> None:
    secret = "hf_reallySecretToken123"
    with transaction() as session:
        session.add(Setting(name="hub_token", value=security.encrypt(secret)))
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    assert "hub_token" in dump
    assert secret not in dump
    with transaction() as session:
        row = session.get(Setting, "hub_token")
        assert row is not None
        assert security.decrypt(row.value) == secret


def test_another_key_file_opens_nothing(home: Path) -> None:
    sealed = security.encrypt("a secret")
    get_settings().secrets_path.write_bytes(Fernet.generate_key())
    security._keys.cache_clear()
    with pytest.raises(ValueError, match="key file"):
        security.decrypt(sealed)


def test_a_new_key_in_front_still_opens_what_the_old_one_sealed(home: Path) -> None:
    sealed = security.encrypt("a secret")
    token = security.csrf_token("cookie")
    path = get_settings().secrets_path
    path.write_bytes(Fernet.generate_key() + b"\n" + path.read_bytes())
    security._keys.cache_clear()
    assert security.decrypt(sealed) == "a secret"
    assert security.is_csrf_token(token, "cookie")


def test_the_key_file_is_for_its_owner_only_and_the_same_for_all(home: Path) -> None:
    path = get_settings().secrets_path

    def read(_: int) -> tuple[bytes, ...]:
        return security._keys.__wrapped__(path)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(read, range(64)))) == 1
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [entry.name for entry in home.iterdir()] == [path.name]


def test_page_tokens_differ_each_time_and_fit_one_cookie() -> None:
    first, second = security.csrf_token("cookie"), security.csrf_token("cookie")
    assert first != second
    assert security.is_csrf_token(first, "cookie")
    assert security.is_csrf_token(second, "cookie")
    assert not security.is_csrf_token(first, "other")
