"""Nothing that could run, reach outside or pretend to be weights gets into a base model's folder."""

import os
import pickle
import struct
import time
from pathlib import Path

import orjson
import pytest

from app.core.config import get_settings
from app.core.errors import Invalid
from app.recipes import base_facts, vetting
from tests.worker.tiny import make_model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be spoiled."""
    target = tmp_path / "model"
    target.mkdir()
    for path in good.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def refused(folder: Path) -> str:
    with pytest.raises(Invalid) as caught:
        vetting.vet_folder(folder)
    return caught.value.sentence


def edit(folder: Path, **changes: object) -> None:
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps({**config, **changes}))


def test_a_good_folder_passes_and_is_described(folder):
    names = vetting.vet_folder(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    facts = base_facts.from_folder(folder)
    assert (facts.layers, facts.width, facts.heads, facts.kv_heads) == (2, 32, 4, 2)
    assert facts.parameters == pytest.approx(facts.vocabulary * 32 + 2 * facts.layer_parameters, rel=0.02)
    assert facts.has_template


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused_by_name(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    assert "can run code" in refused(folder)


def test_a_pickle_called_safetensors_is_refused_by_its_bytes(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": list(range(1000))}))
    assert "not a safetensors file" in refused(folder)


@pytest.mark.parametrize("spoil", ["short", "long header", "offsets", "cut"])
def test_damaged_safetensors_are_refused(folder, spoil):
    path = folder / "model.safetensors"
    body = path.read_bytes()
    size = struct.unpack("<Q", body[:8])[0]
    if spoil == "short":
        path.write_bytes(body[:5])
    elif spoil == "long header":
        path.write_bytes(struct.pack("<Q", 2**40) + body[8:])
    elif spoil == "cut":
        path.write_bytes(body[:-50])
    else:
        header = orjson.loads(body[8 : 8 + size])
        name = next(key for key in header if key != "__metadata__")
        header[name]["data_offsets"] = [0, 10**12]
        text = orjson.dumps(header)
        path.write_bytes(struct.pack("<Q", len(text)) + text + body[8 + size :])
    assert "not a safetensors file" in refused(folder)


def test_program_code_is_refused(folder):
    (folder / "modeling_tiny.py").write_text("import os")
    assert "program code" in refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"vision_config": {"auto_map": {"AutoConfig": "x.Y"}}},
        {"text_config": [{"trust_remote_code": True}]},
        {"_attn_implementation_internal": "evil/kernels"},
        {"attn_implementation": "org/repo"},
        {"model_type": 7},
    ],
)
def test_a_configuration_that_asks_for_code_is_refused_at_any_depth(folder, changes):
    edit(folder, **changes)
    refused(folder)


@pytest.mark.parametrize(
    "target", ["../../other/model.safetensors", "/etc/passwd", "model-1-of-2.safetensors", "x.bin"]
)
def test_the_shard_index_may_name_files_of_the_folder_only(folder, target):
    index = {"weight_map": {"a": "model.safetensors", "b": target}}
    (folder / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    assert "index names" in refused(folder)


def test_shards_must_all_be_there(folder):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "index.json is missing" in refused(folder)
    (folder / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in refused(folder)


@pytest.mark.parametrize("kind", ["pipe", "link", "second name"])
def test_special_files_are_refused_without_being_opened(folder, tmp_path, kind):
    path = folder / "model.safetensors"
    if kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.link(path, tmp_path / "second")
    begun = time.monotonic()
    assert "link or a special file" in refused(folder)
    assert time.monotonic() - begun < 1


def test_only_allowed_places_are_read(tmp_path, monkeypatch):
    allowed, outside = tmp_path / "models", tmp_path / "secrets"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "sneaky").symlink_to(outside)
    monkeypatch.setenv("GPT_BUILDER_MODEL_FOLDERS", orjson.dumps([str(allowed)]).decode())
    get_settings.cache_clear()
    (allowed / "tiny").mkdir()
    assert vetting.allowed_folder(str(allowed / "tiny")) == allowed / "tiny"
    for place in (outside, allowed / "sneaky", allowed / ".." / "secrets", "relative", "/"):
        with pytest.raises(Invalid):
            vetting.allowed_folder(str(place))


def test_our_own_store_is_closed_even_below_an_allowed_root(home, monkeypatch):
    monkeypatch.setenv("GPT_BUILDER_MODEL_FOLDERS", orjson.dumps([str(home.parent)]).decode())
    get_settings.cache_clear()
    (home / "runs" / "somebody" / "model").mkdir(parents=True)
    (home / "models" / "mine").mkdir(parents=True)
    with pytest.raises(Invalid):
        vetting.allowed_folder(str(home / "runs" / "somebody" / "model"))
    assert vetting.allowed_folder(str(home / "models" / "mine"))


def test_unless_the_owner_says_so_only_the_home_of_the_product_is_read(home, tmp_path, monkeypatch):
    """Whoever may edit a project must not read the files of the account that the server runs under."""
    monkeypatch.setenv("HOME", str(tmp_path))
    theirs = tmp_path / "private" / "model"
    theirs.mkdir(parents=True)
    with pytest.raises(Invalid, match="may not be read"):
        vetting.allowed_folder(str(theirs))
    (home / "models" / "mine").mkdir(parents=True)
    assert vetting.allowed_folder(str(home / "models" / "mine"))


@pytest.mark.parametrize(
    "lie", [{"vocab_size": 10**9}, {"hidden_size": 10**6}, {"num_hidden_layers": 10**7}, {"intermediate_size": 10**10}]
)
def test_a_config_that_promises_more_than_the_files_hold_is_refused(folder, lie):
    """Loading would first make room for what it says: one small upload would take the memory of the model server."""
    edit(folder, **lie)
    with pytest.raises(Invalid, match="million weights"):
        base_facts.from_folder(folder)
