"""Training has the machine: what it holds makes room, what does not fit beside it waits, what never fits is refused."""

import asyncio
import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from app.contracts.generation import Sampling, Waiting
from app.contracts.recipe import ModelFiles, Overlay
from app.contracts.room import Room
from app.core.config import get_settings
from app.core.errors import Unavailable
from app.inference import client
from app.inference.targets import Target
from tests.conftest import wait_for
from tests.worker.adapters_made import make_adapter
from tests.worker.tiny import make_model
from worker.engine.devices import let_go
from worker.engine.generate import Loaded
from worker.server import residents as residents_module
from worker.server import serving, sizes
from worker.server.api import create_server
from worker.server.residents import NoRoom, Residents, TooLarge
from worker.server.rooms import Rooms
from worker.server.turns import Busy, Turns

MACHINE = 4 * 2**30
LEFT_ALONE = MACHINE - MACHINE // 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    make_adapter(make_model(home / "base"), home / "adapter", 0)
    make_model(home / "other", seed=1)
    return home


def _files(home: Path, base: str, adapter: str = "") -> ModelFiles:
    overlays = [Overlay(kind="lora", dir=str(home / adapter))] if adapter else []
    return ModelFiles(base_dir=str(home / base), overlays=overlays)


def _room(held_bytes: int, left_s: float | None = 600, attempt_id: str = "a") -> Room:
    return Room(attempt_id=attempt_id, held_bytes=held_bytes, left_s=left_s, lapses_s=60)


def _names(residents: Residents) -> list[object]:
    return [model["name"] for model in residents.listing()]


def test_what_a_model_will_take_is_known_before_it_is_read(home: Path) -> None:
    foretold = sizes.whole_bytes(_files(home, "base"))
    residents = Residents()
    base = residents.get(_files(home, "base"), "base").result()
    adapter = residents.get(_files(home, "base", "adapter"), "adapter").result()
    assert base.size_bytes == pytest.approx(foretold, rel=0.05)
    assert adapter.size_bytes == pytest.approx(sizes.adapter_bytes(home / "adapter"), rel=0.05)
    assert sizes.whole_bytes(_files(home, "nowhere")) == 0, "loading it says what is wrong"


def _weights(shape: object, length: int | None = None) -> bytes:
    head = json.dumps({"embed_tokens.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}}).encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + bytes(64)


@pytest.mark.parametrize("shape", [[-5, 4], [2**40, 2**40], [1e308, 1e308], ["ab"], [3_000_000_000, "ab"], [None], 7])
def test_a_shape_that_its_file_does_not_hold_counts_nothing(tmp_path: Path, shape: object) -> None:
    (tmp_path / "model.safetensors").write_bytes(_weights(shape))
    assert sizes.whole_bytes(_files(tmp_path, "")) == 0


def test_only_whole_files_of_the_folder_are_opened(tmp_path: Path) -> None:
    """A pipe would hold everybody up for ever; a head may claim to be longer than all memory."""
    for name in ("outside", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "x.safetensors").write_bytes(_weights([4, 4]))
    os.mkfifo(tmp_path / "model" / "pipe.safetensors")
    (tmp_path / "model" / "circle.safetensors").symlink_to("circle.safetensors")
    (tmp_path / "model" / "long.safetensors").write_bytes(_weights([4, 4], 2**63))
    assert sizes.whole_bytes(_files(tmp_path, "model")) == 0
    names = {"a": "../outside/x.safetensors", "b": "/dev/zero", "c": "pipe.safetensors"}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert sizes.whole_bytes(_files(tmp_path, "model")) == 0


def test_a_model_that_is_gone_is_not_waited_for(home: Path) -> None:
    residents = Residents(memory_bytes=MACHINE)
    residents.hold(_room(10**15))
    with pytest.raises(FileNotFoundError):
        residents.get(_files(home, "nowhere"), "m")


def test_who_waits_for_memory_keeps_the_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_WAITING", 1)
    monkeypatch.setattr(serving, "LOOK_S", 0.0)
    monkeypatch.setattr(serving, "BEAT_S", 0.0)
    residents = Residents(memory_bytes=MACHINE)
    residents.hold(_room(10**15))
    server = serving.Serving(residents, Turns())

    async def run() -> None:
        first = server.coming(_files(home, "base"), "base")
        await anext(first)
        for _ in range(3):
            with pytest.raises(Busy):
                await anext(server.coming(_files(home, "base"), "base"))
            one = await anext(first)
            assert isinstance(one, Waiting)
        await first.aclose()
        await anext(server.coming(_files(home, "base"), "base"))

    asyncio.run(run())


def test_who_finds_no_place_may_ask_again(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation repeats what was unavailable; a refusal would become the row's result."""
    monkeypatch.setattr(serving, "MOST_WAITING", 0)
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(tmp_path / "s"))
    get_settings.cache_clear()
    server = uvicorn.Server(uvicorn.Config(create_server(), uds=str(tmp_path / "s"), log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(client.is_ready, "the model server answers")
        client.hold_room(_room(10**15))
        target = Target("m", "", _files(home, "base"), "", "")
        with pytest.raises(Unavailable, match="Too many answers are waiting"):
            client.answer(client.request_for(target, Sampling(), prompt="Is it?"))
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("config", [{"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"target_modules": ["lm_head"]}])
def test_an_adapter_that_is_merged_is_foretold_whole_and_brings_no_base_along(
    home: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = make_adapter(home / "base", tmp_path / "merged", 7, **config)
    overlays = [Overlay(kind="lora", dir=str(folder))]
    files = ModelFiles(base_dir=str(home / "base"), overlays=overlays)
    residents = Residents(memory_bytes=MACHINE)
    residents.hold(_room(LEFT_ALONE))
    with pytest.raises(NoRoom) as waits:
        residents.get(files, "merged")
    residents.end_room("a")
    loaded = residents.get(files, "merged").result()
    assert loaded.adapter is None
    assert _names(residents) == ["merged"]
    assert loaded.size_bytes <= waits.value.waiting.needed_bytes


def test_nobody_waits_for_the_lock_while_circles_are_freed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    residents = Residents(memory_bytes=MACHINE)
    size = residents.get(_files(home, "base"), "base").result().size_bytes
    freed: list[bool] = []

    def looked() -> None:
        asking = threading.Thread(target=residents.memory)
        listing = threading.Thread(target=residents.listing)
        for one in (asking, listing):
            one.start()
            one.join(2)
        freed.append(not listing.is_alive())
        let_go()

    monkeypatch.setattr(residents_module, "let_go", looked)
    residents.hold(_room(LEFT_ALONE - 3 * size // 2))
    assert not freed
    residents.get(_files(home, "other"), "other").result()
    assert freed == [True], "the first had to leave for the second"
    assert _names(residents) == ["other"]


def test_weights_that_are_really_needed_are_looked_at_seldom(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who wait ask twice a second; freeing circles stops every answer meanwhile."""
    residents = Residents(memory_bytes=MACHINE)
    size = residents.get(_files(home, "base"), "base").result().size_bytes
    weights: object = residents.get(_files(home, "base"), "base").result().model
    freed: list[None] = []
    monkeypatch.setattr(residents_module, "let_go", lambda: freed.append(None) or let_go())
    assert residents.hold(_room(LEFT_ALONE - size // 2))
    residents.hold(_room(LEFT_ALONE - 3 * size // 2))
    for _ in range(5):
        with pytest.raises(NoRoom):
            residents.get(_files(home, "other"), "other")
    assert len(freed) == 1
    del weights
    monkeypatch.setattr(residents_module, "LOOK_AGAIN_S", 0.0)
    residents.get(_files(home, "other"), "other").result()


def test_a_room_unloads_the_least_recently_used_beyond_it_at_once(home: Path) -> None:
    residents = Residents(memory_bytes=MACHINE)
    for name in ("base", "other"):
        size = residents.get(_files(home, name), name).result().size_bytes
    gone = residents.hold(_room(LEFT_ALONE - size))
    assert [(one.ref, one.size_bytes) for one in gone] == [("base", size)]
    assert _names(residents) == ["other"]
    assert residents.hold(_room(LEFT_ALONE - size)) == [], "told again, nothing changes"
    assert residents.has_given_way(_files(home, "base"))
    assert not residents.has_given_way(_files(home, "other"))


def test_what_does_not_fit_beside_training_waits_until_its_room_ends(home: Path) -> None:
    residents = Residents(memory_bytes=MACHINE)
    files, needed = _files(home, "base", "adapter"), sizes.whole_bytes(_files(home, "base"))
    residents.hold(_room(LEFT_ALONE - needed, attempt_id="small"))  # the base would fit, not with its adapter
    residents.hold(_room(10, left_s=900, attempt_id="tiny"))
    with pytest.raises(NoRoom) as waits:
        residents.get(files, "tuned")
    told = waits.value.waiting
    assert told.needed_bytes == needed + sizes.adapter_bytes(home / "adapter")
    assert told.left_bytes == needed - 10
    assert told.training_bytes == LEFT_ALONE - needed + 10
    assert told.training_left_s == pytest.approx(600, abs=5), "the larger room is enough"
    assert residents.listing() == []
    residents.end_room("small")
    assert residents.get(files, "tuned").result().adapter is not None
    assert _names(residents) == ["", "tuned"]


def test_who_waits_is_told_of_less_than_the_model_needs_also_beside_its_own_base(home: Path) -> None:
    residents = Residents(memory_bytes=MACHINE)
    base = residents.get(_files(home, "base"), "base").result().size_bytes
    adapter = sizes.adapter_bytes(home / "adapter")
    residents.hold(_room(LEFT_ALONE - base - adapter // 2))
    with pytest.raises(NoRoom) as waits:
        residents.get(_files(home, "base", "adapter"), "tuned")
    told = waits.value.waiting
    assert (told.needed_bytes, told.left_bytes) == (base + adapter, base + adapter // 2)
    residents.hold(_room(LEFT_ALONE - base - adapter))
    assert residents.get(_files(home, "base", "adapter"), "tuned").result().base is not None


def test_what_fits_beside_training_goes_on_and_another_leaves_for_it(home: Path) -> None:
    residents = Residents(memory_bytes=MACHINE)
    size = residents.get(_files(home, "base"), "base").result().size_bytes
    residents.hold(_room(LEFT_ALONE - 3 * size // 2))
    assert _names(residents) == ["base"]
    assert residents.get(_files(home, "other"), "other").result().size_bytes == size
    assert _names(residents) == ["other"]


def test_memory_that_an_answer_still_holds_is_not_given_twice(home: Path) -> None:
    residents = Residents(memory_bytes=MACHINE)
    held: Loaded | None = residents.get(_files(home, "base"), "base").result()
    assert held is not None
    residents.hold(_room(LEFT_ALONE - 3 * held.size_bytes // 2))
    with pytest.raises(NoRoom):
        residents.get(_files(home, "other"), "other")
    held = None
    residents.get(_files(home, "other"), "other").result()


def test_what_never_fits_is_refused_with_what_to_do(home: Path) -> None:
    needed = sizes.whole_bytes(_files(home, "base"))
    residents = Residents(memory_bytes=needed)
    with pytest.raises(TooLarge, match="Choose a smaller model"):
        residents.get(_files(home, "base"), "base")


def test_a_room_that_is_not_told_again_lapses() -> None:
    now = [0.0]
    rooms = Rooms(lambda: now[0])
    rooms.hold(_room(100, left_s=30, attempt_id="a"))
    now[0] = 50
    rooms.hold(_room(50, left_s=None, attempt_id="b"))
    assert rooms.held_bytes == 150
    assert rooms.free_after_s(100) == 0, "it is over its time, and may end any moment"
    assert rooms.free_after_s(101) is None
    now[0] = 61
    assert rooms.held_bytes == 50
    rooms.end("b")
    assert rooms.held_bytes == 0


def test_a_later_attempt_of_a_run_takes_the_place_of_the_one_before() -> None:
    rooms = Rooms()
    rooms.hold(_room(100, attempt_id="killed").model_copy(update={"run_id": "r"}))
    rooms.hold(_room(40, attempt_id="next").model_copy(update={"run_id": "r"}))
    rooms.hold(_room(7, attempt_id="other").model_copy(update={"run_id": "s"}))
    assert rooms.held_bytes == 47
    rooms.end("killed")
    assert rooms.held_bytes == 47, "a last word that came late"
    rooms.end("next")
    assert rooms.held_bytes == 7


def test_what_answers_as_a_whole_says_soon_that_it_has_to_wait(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SHORT_PATIENCE_S", 0.0)
    files = {"base_dir": str(home / "base")}
    orders: dict[str, dict[str, Any]] = {
        "/score": {"answers": ["Yes."], "prompt": "Is it?"},
        "/foretell": {"text": "Is it?"},
        "/embed": {"texts": ["Is it?"]},
    }
    with TestClient(create_server()) as http:
        told = http.put("/room", json=_room(10**15).model_dump())
        assert told.json() == {"unloaded": []}
        for path, order in orders.items():
            answer = http.post(path, json={"model_ref": "m", "files": files, **order})
            assert answer.status_code == 503
            assert answer.json()["waiting"]["why"] == "memory"
            assert answer.json()["waiting"]["left_bytes"] == 0
        http.delete("/room/a")
        assert http.post("/score", json={"model_ref": "m", "files": files, **orders["/score"]}).status_code == 200
