"""The system check finds what is wrong and says how to mend it; it never breaks itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import doctor, migrations
from app.core.config import get_settings
from app.core.doctor import Finding, check_all
from app.core.redis_server import RedisServer


def found(name: str) -> Finding:
    return next(finding for finding in check_all() if finding.name == name)


def test_every_problem_comes_with_a_fix(home: Path) -> None:
    findings = check_all()
    assert {"Processor", "Memory", "Disk", "GPU", "Database", "Redis", "Versions"} <= {f.name for f in findings}
    assert all(finding.fix for finding in findings if finding.level != "ok")
    assert all(finding.found for finding in findings)


def test_database_states(home: Path) -> None:
    assert found("Database").level == "note"
    migrations.upgrade()
    assert found("Database").level == "ok"


def test_a_database_without_tables_names_the_command(home: Path) -> None:
    (home / "gpt-builder.db").touch()
    assert (found("Database").level, found("Database").fix) == ("bad", "Run: gpt-builder upgrade")


def test_a_readable_home_is_reported(home: Path) -> None:
    home.chmod(0o755)
    assert found("Privacy of the home").fix == f"Others may read it. Run: chmod 700 {home}"


def test_little_disk_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_DISK_RESERVE_BYTES", str(10**18))
    get_settings.cache_clear()
    assert found("Disk").level == "bad"


def test_redis_that_forgets_or_evicts_is_reported(broker: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_REDIS_URL", broker.url("supervisor"))
    get_settings.cache_clear()
    with broker.client() as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            assert "noeviction" in found("Redis").fix
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "no")
            assert "appendonly yes" in found("Redis").fix
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")


def test_redis_out_of_reach_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_REDIS_URL", f"unix://{home}/nothing.sock")
    get_settings.cache_clear()
    assert found("Redis").level == "bad"
    assert "nothing is lost" in found("Redis").fix


def test_a_check_that_breaks_is_itself_a_finding(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Iterator[Finding]:
        raise OSError("the disk is on fire")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (breaks, *doctor.CHECKS))
    first, *rest = check_all()
    assert (first.level, "the disk is on fire" in first.found) == ("bad", True)
    assert len(rest) > 5
