"""How much memory this machine has, and how much a model will take, by the heads of its files, before it is read."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import psutil

from app.contracts.recipe import ModelFiles
from worker.engine.precision import Precision

_FP32, _INT8 = 4, 1
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
_HEADS = ("lm_head.weight",)
_LONGEST_HEAD = 100_000_000  # bytes, the format's own limit
_PACKED = 2  # numbers in a byte, at most


def memory_limit() -> int:
    """Main memory in bytes: the machine's, or its container's where that is less."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return total


def whole_bytes(files: ModelFiles, precision: Precision = "fp32") -> int:
    """Main memory that base and overlays take at most while they are loaded on a CPU, all of them merged.

    Every weight is read as fp32, also where it then becomes bf16 or int8, and what becomes int8 is kept in both until
    they were compared. A head that is the embedding gets a copy, because products read their weights in another order.
    0 where the files do not tell: loading them says what is wrong.
    """
    base = _weights(Path(files.base_dir))
    count = sum(base.values())
    if not any(name.endswith(_HEADS) for name in base):
        count += max((numbers for name, numbers in base.items() if name.endswith(_EMBEDDINGS)), default=0)
    each = _FP32 + (_INT8 if precision == "int8" else 0)
    return each * count + sum(_stored(Path(overlay.dir)) for overlay in files.overlays)


def adapter_bytes(folder: Path) -> int:
    """Memory that an adapter takes beside its base: every weight as fp32."""
    return _FP32 * sum(_weights(folder).values())


def _weights(folder: Path) -> dict[str, int]:
    """How many numbers each tensor of a folder has, by its name; of files that cannot be read nothing."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for path in _files(folder):
            most = _PACKED * path.stat().st_size
            for name, tensor in _head(path).items():
                if name != "__metadata__":
                    found[name] = _count(tensor["shape"], most)
    return found


def _files(folder: Path) -> list[Path]:
    """The files that loading reads: some folders hold the same weights twice. Only files are opened, since a pipe never
    ends, and none outside the folder."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = set(orjson.loads(index.read_bytes())["weight_map"].values())
        return [folder / name for name in sorted(names) if Path(name).name == name and (folder / name).is_file()]
    return [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]


def _head(path: Path) -> dict[str, Any]:
    """Raises ValueError where the head is longer than its file or the format allows."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, _LONGEST_HEAD):
            raise ValueError("a head longer than its file")
        found: dict[str, Any] = orjson.loads(file.read(length))
        return found


def _count(shape: list[int], most: int) -> int:
    """How many numbers a shape has. Raises ValueError for what is no shape, and for more than its file can hold."""
    count = 1
    for one in shape:
        if type(one) is not int or one < 0 or (count := count * one) > most:
            raise ValueError("a shape that its file does not hold")
    return count


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
