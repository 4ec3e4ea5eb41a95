"""The whole stack, really started: what dies comes back, Ctrl+C leaves nothing, one stack a home."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from app.core import redis_server
from app.core.config import get_settings
from app.core.queue import nudge
from app.supervisor.up import SAME_SIGNAL_S, trainers
from tests.conftest import ROOT, LiveServer, start_stack, wait_for

PARTS = ("redis", "front", "web", "stream", "housekeeper", "data worker", "train worker")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], LiveServer]]:
    """One stack for this file."""
    child, server = start_stack(tmp_path_factory.mktemp("stack") / "home", HF_TOKEN="canary")
    yield child, server
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def pids(home: Path) -> dict[str, int]:
    """Who runs now, as the supervisor writes it down."""
    found: dict[str, int] = json.loads((home / "processes.json").read_text())
    return found


def log_of(home: Path) -> str:
    return (home.parent / f"{home.name}.log").read_text(errors="replace")


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_every_graphics_card_has_a_trainer_of_its_own() -> None:
    assert trainers([]) == trainers(["0"]) == {"train worker": {}}
    several = trainers(["0", "GPU-ab"])
    assert [one["CUDA_VISIBLE_DEVICES"] for one in several.values()] == ["0", "GPU-ab"]
    assert len(several) == 2


def test_it_serves_and_tells_how_to_begin(stack: tuple[subprocess.Popen[bytes], LiveServer]) -> None:
    _, server = stack
    assert is_healthy(server.url)
    assert len(server.setup_token) >= 20
    assert server.setup_token in log_of(server.home)
    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.home / "up.json").stat().st_mode) == 0o600


def test_what_faces_the_network_or_opens_models_knows_no_secret(
    stack: tuple[subprocess.Popen[bytes], LiveServer],
) -> None:
    _, server = stack
    running = pids(server.home)
    password = json.loads((server.home / "redis" / "passwords.json").read_text())
    for name in ("front", "model server", "redis"):
        told = psutil.Process(running[name]).environ()
        assert not {key for key in told if "REDIS" in key or "DATABASE" in key or key == "HF_TOKEN"}, name
        assert not any(secret in value for secret in password.values() for value in told.values()), name
    assert "GPT_BUILDER_REDIS_URL" in psutil.Process(running["web"]).environ()
    assert psutil.Process(running["web"]).environ()["HF_TOKEN"] == "canary"


@pytest.mark.parametrize("part", PARTS)
def test_what_is_killed_comes_back(stack: tuple[subprocess.Popen[bytes], LiveServer], part: str) -> None:
    _, server = stack
    before = pids(server.home)[part]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pids(server.home).get(part, before) != before, f"{part} was started again", 60)
    wait_for(lambda: is_healthy(server.url), "pages are served again", 60)
    assert f"{part:<12} | ended (signal 9); it starts again" in log_of(server.home)


def test_restarts_under_load_fail_no_page(stack: tuple[subprocess.Popen[bytes], LiveServer]) -> None:
    _, server = stack
    done = threading.Event()

    def ask() -> list[str]:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            answers = []
            while not done.is_set():
                answer = client.get("/setup")
                answers.append("200" if answer.status_code == 200 else f"{answer.status_code}: {answer.text}")
            return answers

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            before = pids(server.home)["web"]
            os.kill(before, number)
            wait_for(lambda before=before: pids(server.home).get("web", before) != before, "web was started again", 60)
            wait_for(lambda: is_healthy(server.url), "pages are served again", 60)
        done.set()
        answers = [code for answered in asking for code in answered.result()]
    assert len(answers) >= 4
    assert set(answers) == {"200"}, log_of(server.home)


def test_workers_hear_again_after_redis_was_away(
    stack: tuple[subprocess.Popen[bytes], LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server = stack
    redis_before = pids(server.home)["redis"]
    workers_before = [pids(server.home)[name] for name in ("data worker", "train worker")]
    os.kill(redis_before, signal.SIGKILL)
    wait_for(lambda: pids(server.home).get("redis", redis_before) != redis_before, "Redis was started again", 60)
    embedded = redis_server.prepare(server.home)
    wait_for(embedded.is_ready, "Redis answers")
    monkeypatch.setenv("GPT_BUILDER_REDIS_URL", embedded.url("web"))
    get_settings.cache_clear()
    # Nothing has these ids, so whoever hears the wake-up finds nothing to claim.
    assert nudge("runs.train", "nobody", expires_s=600)
    assert nudge("datasets.import_file", "nobody", expires_s=600)
    with embedded.client() as client:
        for name in ("q:train", "q:data"):
            wait_for(lambda name=name: client.llen(name) == 0, f"a worker took its message from {name}")
    assert [pids(server.home)[name] for name in ("data worker", "train worker")] == workers_before


def test_a_second_start_on_the_same_home_is_refused(stack: tuple[subprocess.Popen[bytes], LiveServer]) -> None:
    _, server = stack
    environment = {**os.environ, "GPT_BUILDER_HOME": str(server.home)}
    second = subprocess.run(
        [sys.executable, "-m", "app.cli", "up", "--port", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert f"already runs on {server.home} at {server.url}" in second.stderr
    assert is_healthy(server.url)


def test_a_taken_port_is_replaced_and_a_killed_supervisor_takes_its_processes_along(
    stack: tuple[subprocess.Popen[bytes], LiveServer], tmp_path: Path
) -> None:
    _, server = stack
    port = server.url.rsplit(":", 1)[1]
    child, other = start_stack(tmp_path / "other", port=port)
    assert other.url != server.url
    assert f"Port {port} is taken" in log_of(tmp_path / "other")
    children = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait(10)
    _, alive = psutil.wait_procs(children, timeout=40)
    assert alive == []
    again, _ = start_stack(tmp_path / "other", port=port)
    again.send_signal(signal.SIGINT)
    wait_for(lambda: "Stopping." in log_of(tmp_path / "other"), "it began to stop")
    time.sleep(2 * SAME_SIGNAL_S)
    again.send_signal(signal.SIGINT)
    again.wait(30)


def test_ctrl_c_leaves_no_process_and_no_socket(stack: tuple[subprocess.Popen[bytes], LiveServer]) -> None:
    child, server = stack
    children = psutil.Process(child.pid).children(recursive=True)
    assert len(children) >= len(PARTS)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert list((server.home / "sockets").iterdir()) == []
    assert not (server.home / "up.json").exists()
