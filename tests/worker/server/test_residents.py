"""What stays in memory: one base for all its adapters, and the least recently used leaves."""

import threading
from pathlib import Path

import pytest

from app.contracts.recipe import ModelFiles, Overlay
from tests.worker.adapters_made import make_adapter
from tests.worker.tiny import make_model
from worker.engine.errors import BadData
from worker.server.residents import Residents


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    base = make_model(home / "base")
    make_model(home / "other", seed=1)
    for number in range(4):
        make_adapter(base, home / f"a{number}", number)
    return home


def _files(home: Path, adapter: str | None = None, base: str = "base") -> ModelFiles:
    overlays = [Overlay(kind="lora", dir=str(home / adapter))] if adapter else []
    return ModelFiles(base_dir=str(home / base), overlays=overlays)


def _names(residents: Residents) -> list[object]:
    return [model["name"] for model in residents.listing()]


def test_adapters_share_one_base_and_cost_only_their_own_size(home: Path) -> None:
    residents = Residents()
    one = residents.get(_files(home, "a0"), "one").result()
    two = residents.get(_files(home, "a1"), "two").result()
    base = residents.get(_files(home), "base").result()
    assert one.model is two.model is base.model
    assert one.tokenizer is base.tokenizer
    sizes = {model["name"]: model["size_bytes"] for model in residents.listing()}
    assert set(sizes) == {"one", "two", "base"}
    stored = (home / "base" / "model.safetensors").stat().st_size
    assert 0.9 * stored < int(str(sizes["base"])) < 2 * stored, "the head that is the embedding has a copy"
    assert 0 < int(str(sizes["one"])) == int(str(sizes["two"]))


def test_the_least_recently_used_adapter_leaves_and_the_base_stays(home: Path) -> None:
    first = Residents()
    adapter = first.get(_files(home, "a0"), "a0").result()
    assert adapter.base is not None
    residents = Residents(budget_bytes=adapter.base.size_bytes + 2 * adapter.size_bytes)
    for name in ("a0", "a1", "a0", "a2"):
        residents.get(_files(home, name), name).result()
    assert _names(residents) == ["a0", "", "a2"]
    assert residents.get(_files(home, "a1"), "a1").result().adapter is not None


def test_another_base_pushes_out_a_base_with_its_adapters(home: Path) -> None:
    residents = Residents(budget_bytes=1)
    residents.get(_files(home, "a0"), "a0").result()
    assert _names(residents) == ["", "a0"]
    residents.get(_files(home, base="other"), "other").result()
    assert _names(residents) == ["other"]


def test_a_deleted_base_takes_its_adapters_along_and_a_failure_is_not_kept(home: Path) -> None:
    residents = Residents()
    residents.get(_files(home), "base").result()
    residents.get(_files(home, "a0"), "a0").result()
    assert residents.unload("base") == 2
    assert residents.listing() == []
    (home / "empty").mkdir()
    with pytest.raises(BadData):
        residents.get(_files(home, "a0", base="empty"), "lost").result()
    with pytest.raises(FileNotFoundError):
        residents.get(_files(home, "a0", base="nowhere"), "gone")
    assert residents.get(_files(home), "base").result().size_bytes > 0
    assert _names(residents) == ["base"]


def test_after_all_were_forgotten_each_is_loaded_anew_and_who_holds_one_keeps_it(home: Path) -> None:
    residents = Residents()
    base = residents.get(_files(home), "base").result()
    adapter = residents.get(_files(home, "a0"), "a0").result()
    gate = threading.Event()
    residents._loader.submit(gate.wait)
    coming = residents.get(_files(home, base="other"), "other")
    residents.forget_all()
    gate.set()
    assert coming.result().size_bytes > 0
    assert residents.listing() == [], "what was being loaded is forgotten, too"
    anew = residents.get(_files(home, "a0"), "a0").result()
    assert anew.base is not None
    assert anew.base is not base
    assert adapter.model is base.model is not anew.model
    assert _names(residents) == ["", "a0"]
