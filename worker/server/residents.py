"""Loaded models: base models and the adapters beside them, in the memory that training leaves; the least recently used
leaves first."""

import hashlib
import logging
import math
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from app.contracts.generation import Waiting
from app.contracts.recipe import ModelFiles
from app.contracts.room import Room, Unloaded
from app.core.numbers import size
from worker.engine import adapters
from worker.engine.devices import give_back_freed, let_go
from worker.engine.errors import EngineError
from worker.engine.generate import Loaded, lay, load, stem
from worker.engine.precision import Precision
from worker.server import sizes
from worker.server.rooms import Rooms

log = logging.getLogger(__name__)
RESERVE_BYTES = 3 * 2**29  # for everything else on the machine, as estimates of runs count it
REMEMBERED = 256  # models that are known to have made room
LOOK_AGAIN_S = 2.0  # for circles of objects that keep weights


class TooLarge(EngineError):
    """The model does not fit into this machine's memory, whatever else is there."""


class NoRoom(Exception):
    """The model fits into this machine's memory, but not beside what is there now; `waiting` has the figures."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__(waiting)
        self.waiting = waiting


class _JustLeft(Exception):
    """Models were unloaded, and what they hold is not free yet."""


def digest(files: ModelFiles) -> str:
    """Identity of a model's files: paths, sizes and times, so that replaced weights are loaded anew.

    Raises OSError where a folder is gone: nobody waits for memory for it.
    """
    parts = [files.model_dump_json()]
    for folder in [files.base_dir, *(overlay.dir for overlay in files.overlays)]:
        os.stat(folder)
        for path in sorted(Path(folder).glob("*.safetensors")) + sorted(Path(folder).glob("tokenizer*.json")):
            stat = path.stat()
            parts.append(f"{path}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass
class _Entry:
    """One model, loaded or being loaded. `below`: the key of the base that an adapter stands on. Until it is loaded
    `size_bytes` is what was foretold."""

    name: str
    future: "Future[Loaded]"
    below: str | None
    size_bytes: int = 0
    precision: str = ""
    note: str = ""
    loaded: Loaded | None = None


@dataclass
class _Leaving:
    """Weights that were unloaded while an answer in the making may still need them. `looked_at`: when circles of
    objects were last freed because of them."""

    loaded: "weakref.ref[Loaded]"
    weights: "weakref.ref[PreTrainedModel]"
    size_bytes: int
    looked_at: float = -math.inf


class Residents:
    """Models by the digest of their files. Loading runs on one thread of its own, so that answers go on meanwhile.

    `budget_bytes`: what models are kept in, a quarter of `memory_bytes` (this machine's) by default. All together they
    never hold more than training and the reserve leave of the machine: what came first has to make room, a new one
    waits. On other devices than the CPU only the budget counts.
    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        device: str = "cpu",
        precision: Precision = "fp32",
        memory_bytes: int | None = None,
        rooms: Rooms | None = None,
    ) -> None:
        memory_bytes = memory_bytes or sizes.memory_limit()
        self._budget = budget_bytes or memory_bytes // 4
        self._whole = memory_bytes - min(RESERVE_BYTES, memory_bytes // 4) if device == "cpu" else None
        self._device, self._precision = device, precision
        self._lock = threading.Lock()
        self._rooms = rooms or Rooms()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._leaving: list[_Leaving] = []
        self._is_unfreed = False  # something was unloaded since memory was given back
        self._gave_way: OrderedDict[str, None] = OrderedDict()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")

    def get(self, files: ModelFiles, name: str) -> "Future[Loaded]":
        """The model, loaded or being loaded. The future raises what loading raised; a failure is not kept.

        Of a model whose last overlay is an adapter, the base is loaded once and shared with all its other adapters.
        Raises NoRoom where it has to wait for memory, TooLarge where waiting would not help.
        """
        key, below = digest(files), stem(files)
        if below != files and not adapters.stands_beside(Path(files.overlays[-1].dir)):
            below = files  # it is merged into its base as it is read: no base has to lie beside it
        below_key = digest(below) if below != files else None
        while True:
            self._free()
            with self._lock:
                try:
                    return self._begun(files, name, key, below, below_key)
                except _JustLeft:
                    pass
                except NoRoom:
                    if not self._circles():
                        raise

    def has_given_way(self, files: ModelFiles) -> bool:
        """Whether this model, or its base, was unloaded to make room for training and is not back yet."""
        keys = {digest(one) for one in (files, stem(files))}
        with self._lock:
            return not keys.isdisjoint(self._gave_way)

    def hold(self, room: Room) -> list[Unloaded]:
        """Leave an attempt its room; which models had to go at once. Answers in the making keep theirs."""
        self._rooms.hold(room)
        with self._lock:
            gone = self._shrink(self._most(), frozenset())
            for key in gone:
                self._gave_way[key] = None
                self._gave_way.move_to_end(key)
            while len(self._gave_way) > REMEMBERED:
                self._gave_way.popitem(last=False)
        self._free()
        return list(gone.values())

    def end_room(self, attempt_id: str) -> None:
        """An attempt is over: its room is free."""
        self._rooms.end(attempt_id)

    def _begun(
        self, files: ModelFiles, name: str, key: str, below: ModelFiles, below_key: str | None
    ) -> "Future[Loaded]":
        """The model, admitted and submitted where it is not there yet."""
        own, base_bytes = self._admit(files, key, below, below_key)
        if below_key is None:
            return self._entry(key, name, None, own, lambda: self._read(files))
        # Submitted first, so it is there before the adapter's turn on the one loading thread.
        base = self._entry(below_key, "", None, base_bytes, lambda: self._read(below))
        return self._entry(key, name, below_key, own, lambda: self._beside(base, files, key))

    def _admit(self, files: ModelFiles, key: str, below: ModelFiles, below_key: str | None) -> tuple[int, int]:
        """Make room for what is not loaded yet; the bytes that the model, and the base below it, are foretold to take.

        Raises NoRoom and TooLarge, and _JustLeft where others made room: their memory is freed first.
        """
        if self._whole is None or key in self._entries:
            return 0, 0
        own = (
            sizes.whole_bytes(files, self._precision)
            if below_key is None
            else sizes.adapter_bytes(Path(files.overlays[-1].dir))
        )
        there = self._entries.get(below_key or "")
        base = 0 if below_key is None or there is not None else sizes.whole_bytes(below, self._precision)
        loading = {other for other, entry in self._entries.items() if entry.loaded is None and other != below_key}
        needed = own + base + (0 if there is None else there.size_bytes)
        beside = sum(self._entries[one].size_bytes for one in loading)
        if needed > self._whole:
            raise TooLarge(
                f"This model needs {size(needed)} of memory while it is loaded, and this machine has "
                f"{size(self._whole)} for models. Choose a smaller model, or give the machine more memory."
            )
        left = self._left()
        kept = frozenset({*loading, below_key or key})
        if needed + beside <= left and self._shrink(left - own - base - self._leaving_bytes(), kept):
            raise _JustLeft
        beside += self._leaving_bytes()
        if (short := needed + beside + self._rooms.held_bytes - self._whole) <= 0:
            return own, base
        raise NoRoom(
            Waiting(
                why="memory",
                needed_bytes=needed,
                left_bytes=max(0, left - beside),
                training_bytes=self._rooms.held_bytes,
                training_left_s=self._rooms.free_after_s(short),
                is_again=key in self._gave_way or below_key in self._gave_way,
            )
        )

    def _left(self) -> int:
        """What training leaves for the models of answers."""
        assert self._whole is not None
        return max(0, self._whole - self._rooms.held_bytes)

    def _most(self) -> int:
        """What is kept in memory while nobody needs more."""
        return self._budget if self._whole is None else min(self._budget, self._left())

    def _leaving_bytes(self) -> int:
        """What was unloaded and is still there."""
        self._leaving = [one for one in self._leaving if one.weights() is not None]
        return sum(one.size_bytes for one in self._leaving)

    def _circles(self) -> list[_Leaving]:
        """Weights that no answer needs any more and that are still there: they may hang in a circle, which nobody has
        looked at just now."""
        return [
            one
            for one in self._leaving
            if one.loaded() is None and one.weights() is not None and time.monotonic() - one.looked_at >= LOOK_AGAIN_S
        ]

    def _free(self) -> None:
        """Give back what was unloaded, also where it hangs in circles. That stops every thread for some tenths of a
        second; nobody waits for the lock meanwhile."""
        with self._lock:
            circles = self._circles()
            is_due, self._is_unfreed = self._is_unfreed or bool(circles), False
            for one in circles:
                one.looked_at = math.inf  # nobody else looks meanwhile
        if is_due:
            let_go()
        for one in circles:  # that alone may take a second
            one.looked_at = time.monotonic()

    def _entry(
        self, key: str, name: str, below: str | None, foretold: int, loading: Callable[[], Loaded]
    ) -> "Future[Loaded]":
        entry = self._entries.get(key)
        if entry is None:
            future = self._loader.submit(self._loaded, key, loading)
            entry = self._entries[key] = _Entry(name, future, below, foretold)
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
            self._gave_way.pop(key, None)
            if key in self._entries:  # unless it was unloaded meanwhile
                entry = self._entries[key]
                entry.size_bytes, entry.precision, entry.note = loaded.size_bytes, loaded.precision, loaded.note
                entry.loaded = loaded
                self._shrink(self._most(), frozenset({key, entry.below or key}))
        self._free()
        return loaded

    def _shrink(self, most: int, kept: frozenset[str]) -> dict[str, Unloaded]:
        """Unload the least recently used until all others take at most so much; what went, by its key. `kept` stays,
        and so does what is being loaded: somebody waits for it."""
        gone: dict[str, Unloaded] = {}
        for key in list(self._entries):
            if sum(entry.size_bytes for entry in self._entries.values()) <= most:
                break
            if key not in kept and key in self._entries and self._entries[key].loaded is not None:
                log.info("unloaded %s to make room", self._entries[key].name or key[:12])
                gone |= self._forget(key)
        return gone

    def _read(self, files: ModelFiles) -> Loaded:
        loaded = load(files, self._device, self._precision)
        give_back_freed()  # weights were laid out anew, layer by layer
        if loaded.note:
            log.info("%s: %s", files.base_dir, loaded.note)
        return loaded

    def _beside(self, base: "Future[Loaded]", files: ModelFiles, key: str) -> Loaded:
        loaded = lay(base.result(), files, key)
        if loaded is None:
            log.info("the adapter %s is merged into a copy of its base", files.overlays[-1].dir)
            return self._read(files)
        return loaded

    def unload(self, name: str) -> int:
        """Forget every model of this name and what stands on it; answers in the making keep theirs. How many went."""
        with self._lock:
            keys = [key for key, entry in self._entries.items() if entry.name == name]
            count = sum(len(self._forget(key)) for key in keys)
        self._free()
        return count

    def forget_all(self) -> None:
        """Let every model, also one that is being loaded, be loaded anew with the next question; answers in the making
        keep theirs."""
        with self._lock:
            for key in list(self._entries):
                self._forget(key)
        self._free()

    def _forget(self, key: str) -> dict[str, Unloaded]:
        """Drop an entry and the adapters that stand on it; what went, by its key. Nothing here holds weights then."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return {}
        if (loaded := entry.loaded) is not None and entry.below is None:
            self._is_unfreed = True
            self._leaving.append(_Leaving(weakref.ref(loaded), weakref.ref(loaded.model), entry.size_bytes))
        gone = {key: Unloaded(ref=entry.name, size_bytes=entry.size_bytes)}
        for other in [other for other, one in self._entries.items() if one.below == key]:
            gone |= self._forget(other)
        return gone

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

    def memory(self) -> dict[str, int | float | None]:
        """What models may hold in all, what training holds of it and for how long, bytes and seconds; no limit where
        models are not in main memory."""
        held = self._rooms.held_bytes
        return {
            "models_bytes": self._whole if self._whole is None else self._left(),
            "kept_bytes": self._most(),
            "training_bytes": held,
            "training_left_s": self._rooms.free_after_s(held) if held else None,
        }
