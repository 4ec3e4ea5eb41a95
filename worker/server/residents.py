"""Loaded models: kept under a memory budget, the least recently used leaves first."""

import hashlib
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil

from app.contracts.recipe import ModelFiles
from worker.engine.generate import Loaded, load

log = logging.getLogger(__name__)


def digest(files: ModelFiles) -> str:
    """Identity of a model's files: paths, sizes and times, so that replaced weights are loaded anew."""
    parts = [files.model_dump_json()]
    for folder in [files.base_dir, *(overlay.dir for overlay in files.overlays)]:
        for path in sorted(Path(folder).glob("*.safetensors")) + sorted(Path(folder).glob("tokenizer*.json")):
            stat = path.stat()
            parts.append(f"{path}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Residents:
    """Models by the digest of their files. Loading runs on one thread of its own, so that answers go on meanwhile."""

    def __init__(self, budget_bytes: int | None = None, device: str = "cpu") -> None:
        self._budget = budget_bytes or psutil.virtual_memory().total // 4
        self._device = device
        self._lock = threading.Lock()
        self._models: OrderedDict[str, Future[Loaded]] = OrderedDict()
        self._names: dict[str, str] = {}
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")

    def get(self, files: ModelFiles, name: str) -> "Future[Loaded]":
        """The model, loaded or being loaded. The future raises what loading raised; a failure is not kept."""
        key = digest(files)
        with self._lock:
            known = self._models.get(key)
            if known is not None:
                self._models.move_to_end(key)
                return known
            future = self._loader.submit(load, files, self._device)
            self._models[key] = future
            self._names[key] = name
            future.add_done_callback(lambda _: self._make_room(key))
            return future

    def _make_room(self, newest: str) -> None:
        with self._lock:
            if (future := self._models.get(newest)) is not None and future.exception():
                del self._models[newest]
                self._names.pop(newest, None)
            total = sum(self._size(key) for key in self._models)
            for key in list(self._models):
                if total <= self._budget or key == newest:
                    break
                total -= self._size(key)
                log.info("unloaded %s to make room", self._names.pop(key, key))
                del self._models[key]

    def _size(self, key: str) -> int:
        future = self._models[key]
        return future.result().size_bytes if future.done() and not future.exception() else 0

    def unload(self, name: str) -> int:
        """Forget every model of this name; answers in the making keep theirs until they end. How many went."""
        with self._lock:
            keys = [key for key, known in self._names.items() if known == name]
            for key in keys:
                self._models.pop(key, None)
                self._names.pop(key, None)
            return len(keys)

    def listing(self) -> list[dict[str, object]]:
        """Name, state and size in bytes of each resident model."""
        with self._lock:
            return [
                {"name": self._names.get(key, ""), "is_loaded": future.done(), "size_bytes": self._size(key)}
                for key, future in self._models.items()
            ]
