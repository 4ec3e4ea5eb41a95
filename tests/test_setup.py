"""Setup says clearly what is missing, and does nothing when nothing changed."""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT


def setup(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "setup"), *arguments],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the few commands that the script itself needs, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "sh", "env"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def fake_python(folder: Path, version: str, has_venv: bool) -> None:
    script = folder / "python3"
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && {{ echo "Python {version}"; exit 0; }}\n'
        f'case "$2" in *version_info*) exit {0 if version >= "3.11" else 1} ;; '
        f"*venv*) exit {0 if has_venv else 1} ;; esac\n"
        "exit 99\n"
    )
    script.chmod(0o755)


def test_no_python_at_all(tools: Path) -> None:
    answer = setup(str(tools))
    assert answer.returncode == 1
    assert "needs Python 3.11 or newer, and none was found" in answer.stderr


def test_a_python_that_is_too_old(tools: Path) -> None:
    fake_python(tools, "3.10.2", has_venv=True)
    answer = setup(str(tools))
    assert answer.returncode == 1
    assert "needs Python 3.11 or newer" in answer.stderr


def test_a_python_without_venv(tools: Path) -> None:
    fake_python(tools, "3.12.1", has_venv=False)
    answer = setup(str(tools))
    assert answer.returncode == 1
    assert "Python 3.12.1 was found, but its venv module is missing" in answer.stderr
    assert "apt install python3-venv" in answer.stderr


def test_a_second_setup_takes_no_time(tmp_path: Path) -> None:
    if Path(sys.prefix).parent != ROOT:
        pytest.skip("this run does not use the project's own .venv")
    started = time.monotonic()
    answer = setup(os.environ["PATH"], "--dev")
    assert answer.stdout == "Setup: nothing has changed, everything is installed.\n"
    assert time.monotonic() - started < 5


def test_every_pin_is_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = project["dependencies"] + [pin for extra in project["optional-dependencies"].values() for pin in extra]
    frozen = {line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for pin in pins:
        name, version = pin.split(";")[0].strip().split("==")
        assert f"{name.split('[')[0]}=={version}".lower().replace("_", "-") in frozen, pin
    assert "://" not in (ROOT / "constraints.txt").read_text()
