"""A wheel that is built from the source runs: everything that is not Python is in it, too."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT

FIRST_PAGES = """
from app.core import migrations
from app.main import create_app
from app.accounts import passwords
from app.core.config import ROOT
from app.overview import demos
from app.projects import gallery
from app.recipes import bases
from fastapi.testclient import TestClient

assert str(ROOT).endswith("installed"), ROOT
migrations.upgrade()
browser = TestClient(create_app(), base_url="http://localhost", headers={"accept": "text/html"})
page = browser.get("/setup")
assert page.status_code == 200 and "Setup token" in page.text, page.text
style = page.text.split('rel="stylesheet" href="')[1].split('"')[0]
assert browser.get(style).status_code == 200
assert len(gallery.TEMPLATES) > 3 and demos.gallery() and passwords.problem("password1234")
assert bases.starter() is not None
print("it runs")
"""


def test_a_wheel_holds_all_that_the_product_needs(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("app", "worker", "migrations", "templates", "static"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "starter", source / "starter", ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_PAGES], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "it runs" in ran.stdout
