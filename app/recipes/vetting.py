"""Whether a folder of model files may be used: safetensors and JSON only, nothing that runs, nothing outside it."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from app.core.config import get_settings
from app.core.errors import Invalid

JSON_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.safetensors.index.json",
    }
)
TEXT_FILES = frozenset({"chat_template.jinja", "README.md", "LICENSE", "LICENSE.txt", "NOTICE"})
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# Families that the engine has a tested path for; any other keeps its own code inside transformers, also safe.
ATTENTION = frozenset({"eager", "sdpa", "flash_attention_2", "flex_attention"})
_PICKLE_NAMES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz", ".msgpack", ".h5")
_MAX_JSON = 64 * 2**20
_MAX_HEADER = 100 * 2**20
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def is_wanted(name: str) -> bool:
    """Whether a file of this name belongs to a usable model folder."""
    return name in JSON_FILES or name in TEXT_FILES or name == "model.safetensors" or bool(SHARD.fullmatch(name))


def allowed_roots() -> list[Path]:
    """Folders below which a local base model may lie: models/ in the product's home, and what the setting names.

    Nothing wider by itself: whoever may edit a project is not always whoever owns the machine.
    """
    settings = get_settings()
    return [settings.home_dir / "models", *(root.expanduser().resolve() for root in settings.model_folders)]


def allowed_folder(text: str) -> Path:
    """The folder that a person named, resolved. Raises Invalid when it is not one we may read.

    Links are resolved before the comparison, and our own store is closed: it holds other workspaces' models.
    """
    folder = Path(os.path.expanduser(text.strip()))
    if not folder.is_absolute():
        raise Invalid(fields={"folder": "Give the whole path of the folder, from the first slash on."})
    resolved = Path(os.path.realpath(folder))
    home = get_settings().home_dir
    inside_store = resolved.is_relative_to(home) and not resolved.is_relative_to(home / "models")
    if inside_store or not any(resolved.is_relative_to(root) for root in allowed_roots()):
        places = " or ".join(str(root) for root in allowed_roots())
        raise Invalid(fields={"folder": f"This folder may not be read. Put the model below {places}."})
    if not resolved.is_dir():
        raise Invalid(fields={"folder": f"There is no folder at {resolved}. Check the path."})
    return resolved


def vet_folder(folder: Path) -> list[str]:
    """Names of the files to take from `folder`, sorted. Raises Invalid naming the first file that is refused.

    Refused: weights in pickle formats, anything that is not a regular file with one name (links, pipes), Python
    code, and files whose first bytes are not what their name says.
    """
    taken: list[str] = []
    refused: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        name = entry.name
        if name.endswith(".py"):
            raise Invalid(
                f"{name} is program code. We never run code that comes with a model; remove it and try again."
            )
        if not is_wanted(name):
            refused += [name] if name.lower().endswith(_PICKLE_NAMES) else []
            continue
        check_regular(folder / name)
        taken.append(name)
    weights = [name for name in taken if name.endswith(".safetensors")]
    if not weights:
        if refused:
            raise Invalid(
                f"{refused[0]} is in a format that can run code when opened. Use a copy of this model with "
                "model.safetensors."
            )
        raise Invalid("There is no model.safetensors in this folder. Choose the folder that holds the weights.")
    for required in ("config.json", "tokenizer.json"):
        if required not in taken:
            raise Invalid(
                f"{required} is missing. A base model needs its config.json and tokenizer.json beside the weights."
            )
    check_config(read_json(folder / "config.json"))
    check_shards(folder, weights)
    for name in taken:
        if name.endswith(".json"):
            read_json(folder / name)
    return taken


def check_regular(path: Path) -> os.stat_result:
    """The file's facts, without opening it. Raises Invalid for links, pipes, devices and files with a second name."""
    facts = os.lstat(path)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        raise Invalid(f"{path.name} is a link or a special file. Copy the real file into the folder.")
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a regular file of at most 64 MB. Raises Invalid."""
    if check_regular(path).st_size > _MAX_JSON:
        raise Invalid(f"{path.name} is larger than 64 MB, which no model needs. Is it the right file?")
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise Invalid(f"{path.name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Invalid(f"{path.name} must hold a JSON object.")
    return value


def check_config(config: dict[str, Any]) -> None:
    """Refuse a configuration that asks for remote code or picks its own attention code, at any depth."""

    def walk(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                walk(item)
        if not isinstance(value, dict):
            return
        for key, item in value.items():
            if key == "auto_map" or (key == "trust_remote_code" and item):
                raise Invalid(
                    f"config.json asks to run code from the internet (“{key}”). We never do; choose another model."
                )
            if "attn_implementation" in key and item is not None and item not in ATTENTION:
                raise Invalid(
                    f"config.json names an unknown attention code (“{key}”). Remove this line or choose another model."
                )
            walk(item)

    walk(config)
    if not isinstance(config.get("model_type"), str):
        raise Invalid("config.json does not say what kind of model this is (model_type).")


def check_shards(folder: Path, weights: list[str]) -> None:
    """The index, where there is one, may only name files of this folder; every header must be whole."""
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" not in weights and not index.exists():
        raise Invalid("The weights are in several files but model.safetensors.index.json is missing.")
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise Invalid("model.safetensors.index.json has no weight_map.")
        for name in set(map(str, weight_map.values())):
            if not SHARD.fullmatch(name) and name != "model.safetensors":
                raise Invalid(f"The index names “{name[:80]}”, which is not a weight file of this folder.")
            if name not in weights:
                raise Invalid(f"{name} is missing. Copy all parts of the model.")
    for name in weights:
        read_header(folder / name)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its header alone.

    Raises Invalid unless the first bytes, the sizes and the file's length agree (a renamed pickle never does).
    """
    size = check_regular(path).st_size
    wrong = Invalid(f"{path.name} is not a safetensors file, whatever its name says.")
    with path.open("rb") as stream:
        start = stream.read(9)
        if len(start) < 9 or start[8:9] != b"{":
            raise wrong
        length = int.from_bytes(start[:8], "little")
        if length > min(_MAX_HEADER, size - 8):
            raise wrong
        stream.seek(8)
        try:
            header = orjson.loads(stream.read(length))
        except orjson.JSONDecodeError as error:
            raise wrong from error
    header.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    try:
        for name, item in header.items():
            tensor = Tensor(str(item["dtype"]), tuple(int(n) for n in item["shape"]))
            begin, end = item["data_offsets"]
            if not 0 <= begin <= end <= size - 8 - length:
                raise wrong
            if end - begin != tensor.elements * _ITEM_BYTES.get(tensor.dtype, 1):
                raise wrong
            tensors[name] = tensor
    except (KeyError, TypeError, ValueError) as error:
        raise wrong from error
    return tensors
