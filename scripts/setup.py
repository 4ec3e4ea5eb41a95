"""Installs what pyproject.toml and constraints.txt pin into .venv, and says how far it is. Standard library only."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "gpt-builder-setup.json"
NEEDED_GIB = 3


def say(text: str) -> None:
    print(text, flush=True)


def has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def torch_index() -> str:
    """The index to take torch from: the setting, where the machine is Linux without a GPU; else the usual one."""
    if platform.system() != "Linux" or has_gpu():
        return ""
    return os.environ.get("GPT_BUILDER_TORCH_INDEX", "").strip()


def wanted(extras: list[str]) -> tuple[str, list[str]]:
    """(torch requirement, all other requirements) of pyproject.toml for these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = list(project["dependencies"])
    for extra in extras:
        pins += project["optional-dependencies"][extra]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    return torch, [pin for pin in pins if pin != torch]


def fingerprint(extras: list[str]) -> str:
    """What the installed environment depends on; a change of any of it installs again."""
    torch, rest = wanted(extras)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    parts = [torch, *rest, json.dumps(scripts), (ROOT / "constraints.txt").read_text()]
    parts += [sys.version, platform.machine(), torch_index(), str(ROOT)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_current(extras: list[str]) -> bool:
    """True where an earlier setup installed exactly these pins with at least these extras."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return PYTHON.exists() and any(
        stamp.get(name) == fingerprint(name.split("+")) for name in stamp if set(extras) <= set(name.split("+"))
    )


def pip(step: str, expected: int, *arguments: str) -> None:
    """Run pip in .venv. Each package it fetches is counted aloud; its whole output is shown if it fails."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--constraint", "constraints.txt", *arguments]
    started, count, log = time.monotonic(), 0, []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        for line in child.stdout or ():
            log.append(line)
            if match := re.match(r"(?:Collecting|Processing) (?:\S*/)?(\w[\w.]*(?:-[A-Za-z]\w*)*)", line):
                count += 1
                fetching(step, count, expected, match[1])
            elif line.startswith("Installing collected packages"):
                fetching(step, 0, 0, "putting the packages in place")
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if child.returncode:
        sys.stderr.write("".join(log[-60:]))
        sys.exit(
            f"{step} pip could not install. The reason stands above; the usual ones are no network, a full disk,"
            " or a Python version for which a package has no build (3.11 is the tested one)."
        )
    say(f"{step} done in {time.monotonic() - started:.0f} s")


def fetching(step: str, count: int, expected: int, what: str) -> None:
    """One line that is rewritten on a terminal; in a log, every tenth package."""
    text = f"{step} {count} of about {max(expected, count)}: {what}" if count else f"{step} {what}"
    if sys.stdout.isatty():
        print(f"\r\033[K{text[:100]}", end="", flush=True)
    elif not count or count % 10 == 1:
        say(text)


def main() -> None:
    extras = ["train"] + (["postgres", "dev"] if "--dev" in sys.argv[1:] else [])
    if is_current(extras):
        say("Setup: nothing has changed, everything is installed.")
        return
    started = time.monotonic()
    what = "GPT Builder and what its tests need" if "--dev" in sys.argv[1:] else "GPT Builder"
    say(f"Setup: installing {what} into {VENV} (Python {platform.python_version()}).")
    say("It happens once, takes some minutes and about 2 GB of disk.")
    if shutil.disk_usage(ROOT).free < NEEDED_GIB * 2**30:
        sys.exit(f"Less than {NEEDED_GIB} GiB of disk is free at {ROOT}. Make room and run this again.")
    torch, rest = wanted(extras)
    index = torch_index()
    if not PYTHON.exists() or subprocess.run([str(PYTHON), "-m", "pip", "--version"], capture_output=True).returncode:
        say("[1/4] making the virtual environment")
        venv.create(VENV, with_pip=True, clear=True)
    else:
        say("[1/4] the virtual environment is there")
    STAMP.unlink(missing_ok=True)
    if platform.system() == "Linux" and not has_gpu():
        say("[2/4] torch: no GPU found" + ("; taking the CPU build from GPT_BUILDER_TORCH_INDEX." if index else "."))
        if not index:
            say("      If your package index serves the large GPU build, set GPT_BUILDER_TORCH_INDEX (see README.md).")
    pip("[2/4] torch:", 10, torch, *(["--index-url", index] if index else []))
    total = len((ROOT / "constraints.txt").read_text().splitlines())
    pip("[3/4] packages:", total - 25 if "dev" in extras else total - 52, "--no-build-isolation", *rest)
    pip("[4/4] gpt-builder:", 1, "--no-deps", "--no-build-isolation", "--editable", ".")
    STAMP.write_text(json.dumps({"+".join(extras): fingerprint(extras)}))
    say(f"Setup finished in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
