"""The real stack in a home of its own: Redis, web, housekeeper, two training workers; started again when they die."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from app.core import redis_server
from app.core.config import ROOT

WORKERS = ("worker 0", "worker 1")
ENGINES = {"worker.engine", "benchmarks.killing.forgetful"}
_RESTART_S = 0.25


class Part:
    """One process that is always started again."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.command, self.environment, self.log = name, command, environment, log
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        process = self.process
        return process.pid if process and process.poll() is None else None

    def send(self, number: int) -> bool:
        """Whether the process was there to receive it."""
        pid = self.pid
        if pid is None:
            return False
        os.kill(pid, number)
        return True

    def stop(self, grace_s: float = 30) -> None:
        self._is_stopping.set()
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        self._thread.join(grace_s)
        self.send(signal.SIGKILL)
        self._thread.join(5)

    def _keep(self) -> None:
        with self.log.open("ab") as log:
            while not self._is_stopping.is_set():
                self.process = subprocess.Popen(
                    self.command,
                    cwd=ROOT,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self.starts += 1
                self.process.wait()
                self._is_stopping.wait(_RESTART_S)


class Stack:
    """All parts. `worker_command` is what runs as a training worker."""

    def __init__(self, home: Path, worker_command: list[str]) -> None:
        self.home = home
        redis = redis_server.prepare(home)
        self.web_socket = redis_server.sockets_dir(home) / "web.sock"
        rights = {
            "GPT_BUILDER_REDIS_URL": redis.url("web"),
            "GPT_BUILDER_REDIS_URL_STREAM": redis.url("stream"),
        }
        queue = {**rights, "GPT_BUILDER_REDIS_URL_WORKER": redis.url("queue")}
        python = sys.executable
        commands = {
            "redis": (redis.command, {}),
            "web": ([python, "-m", "app.serve", "--role", "web", "--socket", str(self.web_socket)], rights),
            "housekeeper": ([python, "-m", "worker.housekeeper"], queue),
            **{name: (worker_command, {**queue, "CUDA_VISIBLE_DEVICES": name.split()[1]}) for name in WORKERS},
        }
        self.parts = {
            name: Part(name, command, environment, home / f"{name.replace(' ', '-')}.log")
            for name, (command, environment) in commands.items()
        }
        self.worker_pids: set[int] = set()

    def trainers(self) -> dict[tuple[int, float], psutil.Process]:
        """Living engine processes that our workers started, by process id and start time."""
        for name in WORKERS:
            pid = self.parts[name].pid
            if pid is not None:
                self.worker_pids.add(pid)
        found = {}
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
                if not ENGINES & set(line) or "--parent" not in line:
                    continue
                is_ours = int(line[line.index("--parent") + 1]) in self.worker_pids
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid, round(process.create_time(), 2)] = process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def stop(self) -> None:
        """Stop in order: work first, Redis last."""
        for name in ("housekeeper", *WORKERS, "web", "redis"):
            self.parts[name].stop()

    def left(self, wait_s: float = 10) -> int:
        """Processes that outlive the stack."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and self.trainers():
            time.sleep(0.1)
        return len(self.trainers())
