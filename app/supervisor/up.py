"""Prepares the home, then starts, watches and stops every process. Called by `gpt-builder up` alone."""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.core import migrations, redis_server
from app.core.config import Settings, get_settings
from app.recipes.machine import this_machine
from app.supervisor.children import Child, Console

TRAINER_GRACE_S = 150
REDIS_START_S = 60
READY_WITHIN_S = 180
SAME_SIGNAL_S = 0.3
# Lines of the start may have pushed the token out of sight by then.
REPEAT_AFTER_S = 60


class CannotStart(Exception):
    """The stack cannot be started; the sentence says why and what to do."""


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock. Raises CannotStart when another supervisor holds it."""
    with (home / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            try:
                state = json.loads((home / "up.json").read_text())
                where = f" at {state['url']} (process {state['pid']})"
            except (OSError, ValueError, KeyError):
                where = ""
            raise CannotStart(
                f"GPT Builder already runs on {home}{where}. Stop that one first, or start this one with "
                "another home: GPT_BUILDER_HOME=/another/folder."
            ) from error
        yield


def prepare_home(settings: Settings) -> Path:
    """The home, private to this user. Raises CannotStart where it cannot be."""
    home = settings.home_dir
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        home.chmod(0o700)
        probe = home / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise CannotStart(
            f"The home {home} cannot be used: {error.strerror}. Give this user the right to write there, or "
            "name another folder with GPT_BUILDER_HOME."
        ) from error
    return home


def listen(host: str, port: int, console: Console) -> socket.socket:
    """A listening socket at the wanted port, or at a free one when that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            console.plain(f"Port {port} is taken by another program; using a free one instead.")
            return socket.create_server((host, 0), family=family, backlog=2048)
        raise CannotStart(
            f"Cannot serve at {host}:{port}: {error.strerror}. Choose another address with --host and --port."
        ) from error


def trainers(cards: list[str]) -> dict[str, dict[str, str]]:
    """Name and environment of each train worker: one a graphics card, one where there is at most one device."""
    if len(cards) < 2:
        return {"train worker": {}}
    return {f"train worker {card}": {"CUDA_VISIBLE_DEVICES": card} for card in cards}


class Stack:
    """All processes of one home."""

    def __init__(self, settings: Settings, home: Path, console: Console) -> None:
        self.settings, self.home, self.console = settings, home, console
        self.sockets = redis_server.sockets_dir(home)
        self.children: list[Child] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.bare = {"GPT_BUILDER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self.environment = dict(self.bare)
        self.redis: redis_server.RedisServer | None = None
        self.signals = 0
        self.last_signal = float("-inf")
        self.stopping = asyncio.Event()

    def start(
        self,
        name: str,
        *command: str,
        environment: Mapping[str, str] | None = None,
        grace_s: float = 15,
        pass_fds: tuple[int, ...] = (),
        niceness: int = 0,
        secluded: bool = False,
    ) -> Child:
        """Keep `command` running under `name` from now on; a `secluded` one is told only where the home is."""
        everything = {**(self.bare if secluded else self.environment), **(environment or {})}
        child = Child(name, list(command), everything, grace_s, pass_fds, niceness, secluded)
        self.children.append(child)
        self.tasks.append(asyncio.ensure_future(child.keep(self.console, lambda _child: self.write_state())))
        return child

    def write_state(self, **more: str) -> None:
        """Who runs with which process id, for `doctor` and the tests; private like the home."""
        path = self.home / "processes.json"
        pids = {child.name: child.pid for child in self.children if child.pid}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"supervisor": os.getpid(), **pids}))
        temporary.replace(path)

    async def start_redis(self) -> None:
        """Start the embedded Redis unless a Redis of the person's own is set, and wait until it answers."""
        if self.settings.redis_url:
            self.console.plain("Redis: the one of GPT_BUILDER_REDIS_URL.")
            return
        try:
            self.redis = redis_server.prepare(self.home)
            command = self.redis.command
        except FileNotFoundError as error:
            raise CannotStart(str(error)) from error
        if self.redis.is_ready():
            # Left over from a supervisor that was killed; the file on disk is what counts.
            with contextlib.suppress(Exception), self.redis.client() as client:
                client.shutdown(nosave=True)
        self.start("redis", *command, grace_s=20, secluded=True)
        for _ in range(REDIS_START_S * 20):
            if self.stopping.is_set() or await asyncio.to_thread(self.redis.is_ready):
                break
            await asyncio.sleep(0.05)
        else:
            raise CannotStart(
                f"Redis did not answer within {REDIS_START_S} s; its own lines above say why. If its file is damaged, "
                f"move {self.home / 'redis' / 'appendonlydir'} away: nothing that matters is kept there."
            )
        self.environment |= {
            "GPT_BUILDER_REDIS_URL": self.redis.url("web"),
            "GPT_BUILDER_REDIS_URL_STREAM": self.redis.url("stream"),
        }

    def start_all(self, listening: socket.socket) -> None:
        """Start everything but Redis."""
        python, sockets = sys.executable, self.sockets
        web, stream, model = (str(sockets / f"{name}.sock") for name in ("web", "stream", "model"))
        self.environment["GPT_BUILDER_MODEL_SERVER_SOCKET"] = model
        queue_rights = {"GPT_BUILDER_REDIS_URL_WORKER": self.redis.url("queue")} if self.redis else {}
        grace_s = self.settings.stop_grace_s + 5
        # Pages come first: somebody waits for each. A trainer keeps its full share of the machine.
        for role, path, niceness in (("web", web, 0), ("stream", stream, 5)):
            command: tuple[str, ...] = (python, "-m", "app.serve", "--role", role, "--socket", path)
            self.start(role, *command, grace_s=grace_s, niceness=niceness)
        fd = listening.fileno()
        arguments = ["--fd", str(fd), "--web", web, "--stream", stream]
        # What faces the network, and what opens foreign models, knows neither database nor queue.
        command = (python, "-m", "app.supervisor.front", *arguments)
        told = self._front_settings()
        self.start("front", *command, environment=told, grace_s=grace_s, pass_fds=(fd,), secluded=True)
        self.start("housekeeper", python, "-m", "worker.housekeeper", environment=queue_rights, niceness=5)
        command = (python, "-m", "worker", "--queue", "data")
        self.start("data worker", *command, grace_s=30, environment=queue_rights, niceness=10)
        for name, environment in trainers([card.id for card in this_machine().cards]).items():
            command, told = (python, "-m", "worker", "--queue", "train"), queue_rights | environment
            self.start(name, *command, grace_s=TRAINER_GRACE_S, environment=told)
        options = ["--precision", self.settings.answer_precision]
        if self.settings.answer_compiled:
            options.append("--compiled")
        told = {}
        if self.settings.vllm_address:
            options += ["--vllm", self.settings.vllm_address]
            options += ["--vllm-needed"] if self.settings.model_server == "vllm" else []
            told = {"GPT_BUILDER_VLLM_KEY": self.settings.vllm_key}
        command = (python, "-m", "worker.server", "--socket", model, *options)
        self.start("model server", *command, environment=told, secluded=True)

    def _front_settings(self) -> dict[str, str]:
        settings = self.settings
        return {
            "GPT_BUILDER_IS_HTTPS": str(settings.is_https),
            "GPT_BUILDER_TRUSTED_PROXIES": json.dumps(settings.trusted_proxies),
            "GPT_BUILDER_LOG_JSON": str(settings.log_json),
            "GPT_BUILDER_STOP_GRACE_S": str(settings.stop_grace_s),
        }

    async def wait_ready(self) -> bool:
        """Wait until pages and streams are served. False when stopped meanwhile."""
        for name in ("web", "stream"):
            transport = httpx.AsyncHTTPTransport(uds=str(self.sockets / f"{name}.sock"))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=5) as client:
                for _ in range(READY_WITHIN_S * 10):
                    if self.stopping.is_set():
                        return False
                    with contextlib.suppress(httpx.HTTPError):
                        if (await client.get("/health")).status_code < 500:
                            break
                    await asyncio.sleep(0.1)
                else:
                    raise CannotStart(
                        f"The {name} process did not answer within {READY_WITHIN_S} s; see its lines above."
                    )
        return True

    def on_signal(self) -> None:
        """First: stop in order. Second: kill everything at once. One Ctrl+C may arrive twice, from the terminal and
        from a program in between; that counts once.
        """
        now = asyncio.get_running_loop().time()
        if now - self.last_signal < SAME_SIGNAL_S:
            return
        self.last_signal = now
        self.signals += 1
        self.stopping.set()
        if self.signals == 1:
            self.console.plain("")
            self.console.plain("Stopping. A training run saves a checkpoint first; Ctrl+C again leaves at once.")
        else:
            for child in self.children:
                child.is_stopping = True
                child.send(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop pages and work, then the model server that open answers need, Redis last: last words still arrive."""
        for child in self.children:
            child.is_stopping = True
        for later in ({"model server", "redis"}, {"redis"}, set()):
            await self._stop_group([child for child in self.children if child.name not in later])
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for path in self.sockets.glob("*.sock"):
            path.unlink(missing_ok=True)
        for name in ("up.json", "processes.json"):
            (self.home / name).unlink(missing_ok=True)

    async def _stop_group(self, group: list[Child]) -> None:
        for child in group:
            child.send(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        started = loop.time()
        told: set[str] = set()
        while alive := [child for child in group if child.pid]:
            for child in alive:
                waited = loop.time() - started
                if waited > child.grace_s or self.signals > 1:
                    child.send(signal.SIGKILL)
                elif waited > 5 and child.name not in told:
                    told.add(child.name)
                    self.console.line(child.name, f"is still finishing; it has {child.grace_s:.0f} s")
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class FirstVisit:
    """The one-time token of a fresh installation: `make` a new one (None once there is an owner), and whether one
    `still_opens` it."""

    make: Callable[[], str | None]
    still_opens: Callable[[str], bool]


async def run(stack: Stack, listening: socket.socket, first_visit: FirstVisit) -> None:
    """Start everything, say where it is, and wait for a signal. Raises CannotStart."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stack.on_signal)
    console = stack.console
    try:
        await stack.start_redis()
        if not stack.stopping.is_set():
            try:
                note = await asyncio.to_thread(migrations.upgrade)
            except migrations.CannotUpgrade as error:
                raise CannotStart(str(error)) from error
            console.plain(note)
            token = await asyncio.to_thread(first_visit.make)
            stack.start_all(listening)
        if not stack.stopping.is_set() and await stack.wait_ready():
            url = write_address(stack, listening, token)
            announce(stack.console, url, token)
            if token:
                await repeat(stack, url, token, first_visit.still_opens)
            await stack.stopping.wait()
    finally:
        await stack.stop()
        console.plain(
            "Stopped." if stack.signals < 2 else "Stopped at once; what ran goes on from its last checkpoint."
        )


async def repeat(stack: Stack, url: str, token: str, still_opens: Callable[[str], bool]) -> None:
    """Say it once more after the first minute, below the lines of the start, while nobody has used the token."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REPEAT_AFTER_S):
            await stack.stopping.wait()
            return
    if await asyncio.to_thread(still_opens, token):
        announce(stack.console, url, token)


def write_address(stack: Stack, listening: socket.socket, token: str | None) -> str:
    """Write address and token for tools. Returns the address."""
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    url = f"http://{shown}:{port}"
    state = {"url": url, "pid": os.getpid(), **({"setup_token": token} if token else {})}
    path = stack.home / "up.json"
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(state))
    temporary.replace(path)
    return url


def announce(console: Console, url: str, token: str | None) -> None:
    """Print the address, and on a fresh database the one-time setup token."""
    lines = ["", f"GPT Builder is ready:  {url}"]
    if token:
        lines += [f"Setup token:           {token}", "It makes the first account, once. Open the address and enter it."]
    for line in [*lines, "Ctrl+C stops everything.", ""]:
        console.plain(line)


def up(host: str | None, port: int | None, first_visit: FirstVisit) -> None:
    """Run the whole stack in the foreground until a signal. Raises CannotStart."""
    settings, console = get_settings(), Console()
    home = prepare_home(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with only_one(home):
        os.environ["GPT_BUILDER_HOME"] = str(home)
        get_settings.cache_clear()
        (home / "up.json").unlink(missing_ok=True)
        console.plain(f"GPT Builder starts. Everything it keeps is in {home}.")
        listening = listen(host or settings.host, settings.port if port is None else port, console)

        async def start() -> None:
            await run(Stack(get_settings(), home, console), listening, first_visit)

        with listening:
            asyncio.run(start())
