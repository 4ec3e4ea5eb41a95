"""Child processes: started, logged with a prefix, started again when they die, stopped in order."""

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from app.core.priority import give_way

RESTART_MIN_S = 0.25
RESTART_MAX_S = 30.0
STEADY_AFTER_S = 20.0
CRASH_LOOP_AFTER = 5
# What Redis writes before each of its lines.
_REDIS_PREFIX = re.compile(r"^\d+:(?:[A-Z]|signal-handler) (?:\(\d+\) |\d+ \w+ \d+ (\d+:\d+:\d+)\.\d+ [-*#.] )")
# What a process may know of its surroundings that needs none of our settings: no addresses, no secrets.
_SURROUNDINGS = (
    "PATH",
    "PYTHONPATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
# Its long advice about a setting of the kernel, at each start (the words differ by version). A queue of at most 256 MB
# that keeps an append-only file is not hurt by what it warns of.
_REDIS_ADVICE = re.compile(r"WARNING .*overcommit")
_COLOURS = (36, 32, 35, 33, 34, 96, 92, 95, 93, 94)


class Console:
    """Prints whole lines, each with the name of the process it comes from, in colour on a terminal."""

    def __init__(self) -> None:
        self.is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._order: list[str] = []

    def line(self, name: str, text: str) -> None:
        """Print one line of the process `name`."""
        if name not in self._order:
            self._order.append(name)
        label = f"{name:<12} |"
        if self.is_coloured:
            label = f"\033[{_COLOURS[self._order.index(name) % len(_COLOURS)]}m{label}\033[0m"
        self.plain(f"{label} {text}")

    def plain(self, text: str = "") -> None:
        """Print one line of the supervisor itself."""
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError:
            # The terminal is gone; the work goes on without it.
            pass


def die_with_parent() -> None:
    """In a child before it starts: ask Linux for SIGTERM when the supervisor dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@dataclass
class Child:
    """One process that must always run.

    `grace_s` is how long it may take to stop, `niceness` how much it gives way to the others (0 to 19).
    A `secluded` one sees `environment` and the machine's own names, none of the supervisor's settings and secrets.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 15
    pass_fds: tuple[int, ...] = ()
    niceness: int = 0
    secluded: bool = False
    process: asyncio.subprocess.Process | None = None
    is_stopping: bool = False
    quick_ends: int = 0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.process and self.process.returncode is None else None

    def _before_start(self) -> None:
        die_with_parent()
        give_way(self.niceness)

    def _surroundings(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not self.secluded or name in _SURROUNDINGS}

    async def keep(self, console: Console, on_start: Callable[["Child"], None]) -> None:
        """Run it until it is told to stop, starting it again with growing pauses when it dies."""
        last_lines: deque[str] = deque(maxlen=8)
        while not self.is_stopping:
            started = time.monotonic()
            try:
                self.process = await asyncio.create_subprocess_exec(
                    *self.command,
                    env={**self._surroundings(), **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=self.pass_fds,
                    start_new_session=True,
                    preexec_fn=self._before_start,
                    limit=2**20,
                )
            except OSError as error:
                console.line(self.name, f"could not be started: {error}")
            else:
                on_start(self)
                await self._read(console, last_lines)
                await self.process.wait()
                self._sweep()
            if self.is_stopping:
                return
            await self._pause(console, time.monotonic() - started, last_lines)

    async def _read(self, console: Console, last_lines: deque[str]) -> None:
        """Print what it says, until the process ends (a grandchild may hold the pipe open for longer)."""
        assert self.process is not None
        assert self.process.stdout is not None
        reading = asyncio.ensure_future(self._lines(self.process.stdout, console, last_lines))
        ending = asyncio.ensure_future(self.process.wait())
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({reading}, timeout=0.2)
        reading.cancel()
        await ending

    async def _lines(self, stream: asyncio.StreamReader, console: Console, last_lines: deque[str]) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:
                console.line(self.name, "(a line longer than 1 MiB was left out)")
                continue
            if not raw:
                return
            text = _REDIS_PREFIX.sub(r"\1 ", raw.decode(errors="replace").rstrip()).strip()
            if text:
                last_lines.append(text)
                if not _REDIS_ADVICE.search(text):
                    console.line(self.name, text)

    async def _pause(self, console: Console, lived_s: float, last_lines: deque[str]) -> None:
        code = self.process.returncode if self.process else None
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        self.quick_ends = 0 if lived_s > STEADY_AFTER_S else self.quick_ends + 1
        pause = min(RESTART_MAX_S, RESTART_MIN_S * 2 ** max(0, self.quick_ends - 1))
        console.line(self.name, f"ended ({how}); it starts again in {pause:g} s")
        if self.quick_ends == CRASH_LOOP_AFTER:
            console.line(self.name, f"has now ended {CRASH_LOOP_AFTER} times soon after its start. Its last words:")
            for text in list(last_lines):
                console.line(self.name, f"    {text}")
            console.line(self.name, "`gpt-builder doctor` looks for the cause; it is tried again meanwhile.")
        end = time.monotonic() + pause
        while time.monotonic() < end and not self.is_stopping:
            await asyncio.sleep(0.05)

    def _sweep(self) -> None:
        """Kill what is left of its process group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send a signal to the process; to its whole group when it is SIGKILL."""
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)
