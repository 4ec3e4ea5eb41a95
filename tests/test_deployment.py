"""The container files keep their promises: same rights as the embedded Redis, health checks, nobody is root."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from app.core import redis_server
from tests.conftest import ROOT, wait_for

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("gpt-builder-")}


def redis_script() -> str:
    script: str = SERVICES["redis"]["command"][2]
    return script.replace("$$", "$")


@pytest.mark.parametrize("user", ["web", "queue", "stream"])
def test_redis_gives_the_same_rights_as_the_embedded_one(user: str) -> None:
    found = re.search(rf"^user {user} on \S+ (.+)$", redis_script(), re.MULTILINE)
    assert found
    assert found[1] == redis_server._RIGHTS[user]


def test_redis_starts_with_that_command_and_refuses_strangers(tmp_path: Path) -> None:
    socket = redis_server.sockets_dir(tmp_path) / "compose.sock"
    script = redis_script().replace("/tmp/users.acl", str(tmp_path / "users.acl"))
    script = script.replace("redis-server", redis_server.redis_binary(), 1).replace("/data", str(tmp_path))
    script = script.rstrip() + f" --port 0 --unixsocket {socket}\n"
    passwords = {f"REDIS_{user}_PASSWORD": user.lower() * 3 for user in ("WEB", "QUEUE", "STREAM")}
    child = subprocess.Popen(["sh", "-c", script], env={**os.environ, **passwords}, stdout=subprocess.DEVNULL)
    try:
        wait_for(socket.exists, "Redis made its socket")
        with redis.Redis.from_url(f"unix://web:webwebweb@{socket}") as client:
            assert client.ping()
            with pytest.raises(redis.RedisError, match="permission"):
                client.flushall()
            assert client.info("persistence")["aof_enabled"] == 1
            assert client.info("memory")["maxmemory_policy"] == "noeviction"
        with redis.Redis.from_url(f"unix://health:none@{socket}") as client:
            assert client.ping()
            with pytest.raises(redis.RedisError, match="permission"):
                client.get("s:run:1")
        with redis.Redis(unix_socket_path=str(socket)) as client, pytest.raises(redis.RedisError, match=r"(?i)auth"):
            client.ping()
    finally:
        child.terminate()
        child.wait(10)


def test_every_part_of_the_product_is_there() -> None:
    for name in (
        "front",
        "web",
        "stream",
        "housekeeper",
        "data-worker",
        "trainer",
        "model-server",
        "postgres",
        "redis",
    ):
        assert name in SERVICES
    assert SERVICES["trainer-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["trainer"]["stop_grace_period"] == SERVICES["trainer-gpu"]["stop_grace_period"] == "180s"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check_and_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert "healthcheck" in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    if name in OURS:
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert "user" not in service, "the image names the user"


def test_only_the_front_is_published() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["front"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_every_variable_is_explained() -> None:
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used <= explained


def test_images_run_as_a_person_without_rights_and_build_from_what_exists() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = {found[1]: found[0] for found in re.findall(r"^FROM (\S+) AS (\S+)", text, re.MULTILINE)}
    wanted = {service["build"]["target"] for service in OURS.values()}
    assert {"web", "gpu"} <= wanted <= set(stages)
    for target in wanted:
        body = text.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        assert "\nUSER 10001:10001\n" in body
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _target = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, source
