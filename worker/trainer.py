"""The engine as a process of its own: spawned from a clean interpreter, spoken to by lines, ended with its group."""

import contextlib
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ValidationError

from app.contracts.events import Control, EngineEvent, engine_event
from app.contracts.recipe import TrainOrder
from app.core.config import ROOT

COMMAND = (sys.executable, "-m", "worker.engine", "train")
# What a trainer may know of its surroundings: no addresses, no secrets.
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "HOME",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
_LOG_LINES = 50
_LINE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: float
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> "Identity":
        """Raises psutil.NoSuchProcess."""
        return cls(pid, psutil.Process(pid).create_time(), boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        if self.boot_id != boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            # create_time has the kernel's clock ticks; the same process always gives the same figure.
            return abs(process.create_time() - self.started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def kill(self, wait_s: float = 10) -> bool:
        """Kill the process and its group, frozen or not; whether it is gone after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while self.is_alive():
            # The group first: it is the trainer's own, since the trainer leads a session.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(self.pid) == self.pid:
                    os.killpg(self.pid, signal.SIGKILL)
                else:
                    os.kill(self.pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


class Trainer:
    """A running engine process. Its death signal hangs on the thread that starts it: start it from the main one."""

    def __init__(
        self,
        order: TrainOrder,
        *,
        command: Sequence[str] = COMMAND,
        lock: int | None = None,
        devices: Sequence[str] = (),
    ) -> None:
        surroundings = environment(devices)
        self.cards = surroundings.get("CUDA_VISIBLE_DEVICES", "")
        self._process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=surroundings,
            cwd=ROOT,
            pass_fds=() if lock is None else (lock,),
        )
        self.identity = Identity.of(self._process.pid)
        if hasattr(resource, "prlimit"):
            with contextlib.suppress(OSError):
                resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
        self.has_closed = False
        self._events: queue.SimpleQueue[EngineEvent | None] = queue.SimpleQueue()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._readers = [
            threading.Thread(target=reader, daemon=True, name=name)
            for name, reader in (("engine-events", self._read_events), ("engine-log", self._read_log))
        ]
        for thread in self._readers:
            thread.start()
        self._write_line(order.model_dump_json())

    def tell(self, control: Control) -> None:
        """Say something to be obeyed between two steps; nothing happens when the process is gone."""
        self._write_line(control.model_dump_json(exclude_none=True))

    def next_event(self, timeout_s: float) -> EngineEvent | None:
        """What it said next, or None after `timeout_s` of silence; `has_closed` tells that nothing more will come."""
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
        except queue.Empty:
            return None
        self.has_closed = event is None
        return event

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    @property
    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log)

    def ask_to_end(self) -> None:
        """SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def dump_stacks(self) -> None:
        """Make it write where it stands to its log, and end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        """SIGKILL to its whole group, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within the time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Read what is left in the pipes and close them. Call it when the process is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # helpers that it may have left in its group
        for thread in self._readers:
            thread.join(timeout=5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _write_line(self, line: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):
            stdin.write(line.encode() + b"\n")
            stdin.flush()

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._events.put(engine_event.validate_json(line))
            except ValidationError as error:
                # Half a line is all that a killed process leaves; anything else is worth reading.
                self._log.append(f"not an event: {line[:200]!r} ({error.error_count()} errors)")
        self._events.put(None)

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line[:_LINE_LIMIT].decode(errors="replace").rstrip()
            self._log.append(text)
            sys.stderr.write(f"{text}\n")


def environment(devices: Sequence[str] = ()) -> dict[str, str]:
    """The trainer's environment: only what it needs, nothing secret, one thread pool that does not spin.

    `devices`: the graphics cards that it may see; empty: what this process sees.
    """
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if devices:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return kept | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONHASHSEED": "0",
    }


def boot_id() -> str:
    """What changes with every start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def memory_kills() -> int:
    """How often the kernel has killed for want of memory since boot; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
