"""The system check: what the machine and the parts are like, and how to mend what is wrong. Pure, never raises.

Used by `gpt-builder doctor` and by the page at /system.
"""

import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import httpx
import psutil
import redis

from app.core import migrations, numbers, redis_server
from app.core.config import get_settings
from app.core.storage import free_bytes

Level = Literal["ok", "note", "bad"]
GIB = 2**30
_FLOORS = {"starlette": (1, 3, 1), "python-multipart": (0, 0, 34), "jinja2": (3, 1, 6)}
_TRAIN_FLOORS = {"torch": (2, 11), "transformers": (5, 17), "peft": (0, 17), "safetensors": (0, 6)}
_REDIS_FLOORS = {6: (6, 2, 0), 7: (7, 2, 11), 8: (8, 0, 0)}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was found, and, unless all is well, what to do."""

    name: str
    level: Level
    found: str
    fix: str = ""

    @property
    def in_public(self) -> "Finding":
        """What people who do not run this machine may know: whether the part is well. No paths, versions, sizes."""
        words = {"ok": "is well", "note": "could be better", "bad": "needs attention"}
        fix = "" if self.level == "ok" else "Ask an owner of your workspace to look at this page."
        return Finding(self.name, self.level, words[self.level], fix)


def _version(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def processor() -> Iterator[Finding]:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"{cores} {'core' if cores == 1 else 'cores'}, {platform.machine()}"
    if cores < 2:
        yield Finding("Processor", "note", name, "Pages will be slow while a run trains; two cores or more are better.")
    else:
        yield Finding("Processor", "ok", name)


def memory() -> Iterator[Finding]:
    """Main memory, and how much of it is free."""
    found = psutil.virtual_memory()
    text = f"{found.total / GIB:.1f} GB, {found.available / GIB:.1f} GB free"
    if found.available < 1.5 * GIB:
        yield Finding(
            "Memory", "bad", text, "Close other programs: training even a small model needs about 1.5 GB free."
        )
    elif found.total < 4 * GIB:
        yield Finding(
            "Memory", "note", text, "Enough for the starter model; choose no base model above 100 million weights."
        )
    else:
        yield Finding("Memory", "ok", text)


def disk() -> Iterator[Finding]:
    """Room at the home, and whether others may look into it."""
    home = get_settings().home_dir
    free, reserve = free_bytes(), get_settings().disk_reserve_bytes
    text = f"{free / GIB:.1f} GB free at {home}"
    if free < reserve:
        yield Finding(
            "Disk",
            "bad",
            text,
            f"Nothing is written below a reserve of {reserve / GIB:.0f} GB. Delete the weights of old runs, or files.",
        )
    elif free < reserve + 5 * GIB:
        yield Finding(
            "Disk", "note", text, "A larger base model takes several GB; free some room before bringing one in."
        )
    else:
        yield Finding("Disk", "ok", text)
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        yield Finding("Privacy of the home", "bad", f"mode {mode:o}", f"Others may read it. Run: chmod 700 {home}")


def graphics() -> Iterator[Finding]:
    """GPUs that the driver knows. Torch is not asked: no page process loads it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        if platform.system() == "Darwin" and platform.machine() == "arm64":
            yield Finding("GPU", "ok", "Apple GPU, used through Metal")
        else:
            yield Finding("GPU", "ok", "none; models train on the processor, which suits the starter model")
        return
    query = ["--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run([tool, *query], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        yield Finding(
            "GPU", "note", "the driver does not answer", "Look at what `nvidia-smi` says, or restart the machine."
        )
        return
    for line in answer.strip().splitlines():
        name, total, free, driver = (part.strip() for part in line.split(","))
        text = f"{name}, {int(total) / 1024:.0f} GB, {int(free) / 1024:.0f} GB free, driver {driver}"
        yield Finding("GPU", "ok", text)


def database() -> Iterator[Finding]:
    """Whether it answers and has this version's tables."""
    path = migrations.sqlite_file()
    kind = f"SQLite at {path}" if path else "PostgreSQL"
    if path is not None and not path.exists():
        yield Finding("Database", "note", "none yet", "It is made at the first start: gpt-builder up")
        return
    have, want = migrations.current(), migrations.newest()
    if have != want:
        yield Finding("Database", "bad", f"{kind}, revision {have}, needed {want}", "Run: gpt-builder upgrade")
        return
    yield Finding("Database", "ok", f"{kind}, revision {have}")


def broker() -> Iterator[Finding]:
    """Redis: reachable, with the settings that keep a queue whole, and new enough."""
    url = get_settings().redis_url
    if not url:
        server = redis_server.prepare(get_settings().home_dir)
        if not server.is_ready():
            version = ".".join(map(str, redis_server.binary_version(redis_server.redis_binary())))
            yield Finding(
                "Redis", "note", f"not running (server {version} is here)", "Start everything: gpt-builder up"
            )
            return
        url = server.url("supervisor")
    try:
        with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
            info = client.info()
    except redis.RedisError as error:
        yield Finding(
            "Redis",
            "bad",
            f"does not answer ({error})",
            "Pages work and nothing is lost, but no work starts. Start Redis.",
        )
        return
    version = str(info["redis_version"])
    # The supervisor tells its processes the address of the embedded server, too.
    home_sockets = str(redis_server.sockets_dir(get_settings().home_dir))
    is_embedded = not get_settings().redis_url or home_sockets in get_settings().redis_url
    floor = _REDIS_FLOORS.get(_version(version)[0], (0,))
    if info.get("maxmemory_policy") != "noeviction":
        yield Finding(
            "Redis",
            "bad",
            f"version {version}, evicts keys when full",
            "Set maxmemory-policy noeviction in its configuration.",
        )
    elif not info.get("aof_enabled"):
        yield Finding(
            "Redis", "bad", f"version {version}, keeps nothing on disk", "Set appendonly yes in its configuration."
        )
    elif not is_embedded and _version(version) < floor:
        yield Finding(
            "Redis", "note", f"version {version}", f"It has known holes; use {'.'.join(map(str, floor))} or newer."
        )
    elif is_embedded:
        yield Finding("Redis", "ok", f"version {version}, private: no port, own users, refuses scripts from pages")
    else:
        yield Finding("Redis", "ok", f"version {version}")


def processes() -> Iterator[Finding]:
    """Whether the pages and the model server answer on their sockets."""
    sockets = redis_server.sockets_dir(get_settings().home_dir)
    places = {"Pages": sockets / "web.sock", "Live events": sockets / "stream.sock"}
    places["Model server"] = get_settings().model_server_socket or sockets / "model.sock"
    for name, path in places.items():
        if not path.exists():
            yield Finding(name, "note", "not running here", "Start everything: gpt-builder up")
            continue
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=3) as client:
                client.get("http://localhost/health")
        except httpx.HTTPError:
            yield Finding(
                name, "bad", "does not answer", f"It is started again by itself; if this stays, see the log of {name}."
            )
        else:
            yield Finding(name, "ok", "answers")


def models() -> Iterator[Finding]:
    """What the model server holds, and what training leaves it of this machine's memory."""
    settings = get_settings()
    path = settings.model_server_socket or redis_server.sockets_dir(settings.home_dir) / "model.sock"
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=3) as client:
            told = client.get("http://localhost/models").json()
        loaded, memory = told["models"], told["memory"]
    except (httpx.HTTPError, ValueError, KeyError):
        return  # what does not answer is told as a part of its own
    held = numbers.size(sum(one["size_bytes"] for one in loaded))
    text = f"{numbers.counted(len(loaded), 'model')}, {held} of {numbers.size(memory['kept_bytes'])}"
    if memory["training_bytes"]:
        left_s = memory["training_left_s"]
        until = "" if left_s is None else f" until about {numbers.later(left_s)}"
        text += f"; training holds {numbers.size(memory['training_bytes'])} of the machine's memory{until}"
    yield Finding("Models in memory", "ok", text)


def answers() -> Iterator[Finding]:
    """Which engine answers, and why that one."""
    settings = get_settings()
    name, address = "Engine of answers", settings.vllm_address.rstrip("/").removesuffix("/v1")
    if not address:
        if settings.model_server == "vllm":
            yield Finding(name, "bad", "vLLM is chosen, without an address", "Set GPT_BUILDER_VLLM_URL.")
        elif settings.model_server == "own":
            yield Finding(name, "ok", "our own, chosen by GPT_BUILDER_MODEL_SERVER")
        elif shutil.which("nvidia-smi"):
            advice = (
                "For models of billions of weights start vLLM and set GPT_BUILDER_VLLM_URL; see the operations guide."
            )
            yield Finding(name, "ok", f"our own, since no vLLM is named; there is a GPU. {advice}")
        else:
            yield Finding(name, "ok", "our own: no vLLM is named, and there is no GPU for it")
        return
    headers = {"authorization": f"Bearer {settings.vllm_key}"} if settings.vllm_key else {}
    try:
        with httpx.Client(base_url=address, headers=headers, timeout=5, trust_env=False) as client:
            listed = client.get("/v1/models")
            listed.raise_for_status()
            held = next(one for one in listed.json()["data"] if not one.get("parent"))
            # Without a name nothing is loaded: only whether there is such a path is told.
            takes_adapters = client.post("/v1/load_lora_adapter", json={}).status_code not in (404, 405)
    except (httpx.HTTPError, StopIteration, KeyError, TypeError, ValueError):
        is_needed = settings.model_server == "vllm"
        fix = "Start vLLM, or set GPT_BUILDER_MODEL_SERVER=own."
        level: Level = "bad" if is_needed else "note"
        yield Finding(name, level, f"vLLM at {address} does not answer" + ("" if is_needed else "; our own does"), fix)
        return
    found = f"vLLM at {address}, for {held.get('root') or held['id']}; our own for all other models"
    if takes_adapters:
        yield Finding(name, "ok", found)
    else:
        fix = (
            "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; until then our own engine answers."
        )
        yield Finding(name, "note", f"{found}. It takes no adapters", fix)


def versions() -> Iterator[Finding]:
    """Python and the libraries that have a floor, all in one line when they are right."""
    good = [f"Python {platform.python_version()}"]
    for name, floor in {**_FLOORS, **_TRAIN_FLOORS}.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in _TRAIN_FLOORS:
                yield Finding(
                    name, "note", "not installed", "This machine cannot train or answer: pip install '.[train]'"
                )
            continue
        if _version(version) < floor:
            wanted = ".".join(map(str, floor))
            yield Finding(name, "bad", f"version {version}, needed {wanted}", "Run scripts/setup again.")
        else:
            good.append(f"{name} {version}")
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        yield Finding("kernels", "bad", "installed", "It runs code from the network: pip uninstall kernels")
    yield Finding("Versions", "ok", ", ".join(good))


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    processor,
    memory,
    disk,
    graphics,
    database,
    broker,
    processes,
    answers,
    models,
    versions,
)


def check_all() -> list[Finding]:
    """Every check, in order. A check that breaks is itself a finding."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.capitalize()
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            findings.append(Finding(name, "bad", f"could not be looked at ({reason})", "Mend that, then check again."))
    return findings
