"""Loaded models: base models and the adapters beside them, under one memory budget; the least recently used leaves."""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.contracts.recipe import ModelFiles
from worker.engine.generate import Loaded, lay, load, stem
from worker.engine.precision import Precision

log = logging.getLogger(__name__)


def digest(files: ModelFiles) -> str:
    """Identity of a model's files: paths, sizes and times, so that replaced weights are loaded anew."""
    parts = [files.model_dump_json()]
    for folder in [files.base_dir, *(overlay.dir for overlay in files.overlays)]:
        for path in sorted(Path(folder).glob("*.safetensors")) + sorted(Path(folder).glob("tokenizer*.json")):
            stat = path.stat()
            parts.append(f"{path}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass
class _Entry:
    """One model, loaded or being loaded. `below`: the key of the base that an adapter stands on."""

    name: str
    future: "Future[Loaded]"
    below: str | None
    size_bytes: int = 0
    precision: str = ""
    note: str = ""


class Residents:
    """Models by the digest of their files. Loading runs on one thread of its own, so that answers go on meanwhile."""

    def __init__(self, budget_bytes: int | None = None, device: str = "cpu", precision: Precision = "fp32") -> None:
        self._budget = budget_bytes or psutil.virtual_memory().total // 4
        self._device, self._precision = device, precision
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")

    def get(self, files: ModelFiles, name: str) -> "Future[Loaded]":
        """The model, loaded or being loaded. The future raises what loading raised; a failure is not kept.

        Of a model whose last overlay is an adapter, the base is loaded once and shared with all its other adapters.
        """
        key, below = digest(files), stem(files)
        below_key = digest(below) if below != files else None
        with self._lock:
            if below_key is None:
                return self._entry(key, name, None, lambda: self._whole(files))
            # Submitted first, so it is there before the adapter's turn on the one loading thread.
            base = self._entry(below_key, "", None, lambda: self._whole(below))
            return self._entry(key, name, below_key, lambda: self._beside(base, files, key))

    def _entry(self, key: str, name: str, below: str | None, loading: Callable[[], Loaded]) -> "Future[Loaded]":
        entry = self._entries.get(key)
        if entry is None:
            future = self._loader.submit(self._loaded, key, loading)
            entry = self._entries[key] = _Entry(name, future, below)
        entry.name = name or entry.name
        self._entries.move_to_end(key)
        return entry.future

    def _loaded(self, key: str, loading: Callable[[], Loaded]) -> Loaded:
        """Load; forget a failure; let the least recently used go until the rest fits."""
        try:
            loaded = loading()
        except BaseException:
            with self._lock:
                self._forget(key)
            raise
        with self._lock:
            if key in self._entries:  # unless it was unloaded meanwhile
                entry = self._entries[key]
                entry.size_bytes, entry.precision, entry.note = loaded.size_bytes, loaded.precision, loaded.note
                self._make_room(key)
        return loaded

    def _make_room(self, newest: str) -> None:
        kept = {newest, self._entries[newest].below}
        for key in list(self._entries):
            if sum(entry.size_bytes for entry in self._entries.values()) <= self._budget:
                return
            if key not in kept and key in self._entries and self._entries[key].size_bytes:
                log.info("unloaded %s to make room", self._entries[key].name or key[:12])
                self._forget(key)

    def _whole(self, files: ModelFiles) -> Loaded:
        loaded = load(files, self._device, self._precision)
        if loaded.note:
            log.info("%s: %s", files.base_dir, loaded.note)
        return loaded

    def _beside(self, base: "Future[Loaded]", files: ModelFiles, key: str) -> Loaded:
        loaded = lay(base.result(), files, key)
        if loaded is None:
            log.info("the adapter %s is merged into a copy of its base", files.overlays[-1].dir)
            return self._whole(files)
        return loaded

    def unload(self, name: str) -> int:
        """Forget every model of this name and what stands on it; answers in the making keep theirs. How many went."""
        with self._lock:
            keys = [key for key, entry in self._entries.items() if entry.name == name]
            return sum(self._forget(key) for key in keys)

    def forget_all(self) -> None:
        """Let every model, also one that is being loaded, be loaded anew with the next question; answers in the making
        keep theirs."""
        with self._lock:
            self._entries.clear()

    def _forget(self, key: str) -> int:
        """Drop an entry and the adapters that stand on it."""
        if self._entries.pop(key, None) is None:
            return 0
        above = [other for other, entry in self._entries.items() if entry.below == key]
        return 1 + sum(self._forget(other) for other in above)

    def listing(self) -> list[dict[str, object]]:
        """Each resident model: name, size in bytes, number format and why it is not the one of the settings. A base
        that only serves adapters has no name."""
        with self._lock:
            return [
                {
                    "name": entry.name,
                    "is_loaded": entry.future.done(),
                    "size_bytes": entry.size_bytes,
                    "precision": entry.precision,
                    "note": entry.note,
                }
                for entry in self._entries.values()
            ]
