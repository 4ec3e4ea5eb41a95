"""Rows of a frozen dataset version as token ids: read, tokenised once, kept as memory maps, put in order."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from app.contracts.conversation import Example, Message
from worker.engine.errors import BadData

Encode = Callable[[Example], tuple[list[int], list[bool]]]
Pieces = list[tuple[list[int], list[bool]]]
# Of a turn, what is learned: its calls of tools stand in its content.
LEARNED = ("role", "content", "train")
KEPT_FOLDERS = 12  # of a version's tokens: two for each tokenizer, template and longest row
CODE_VERSION = 1  # raise when the meaning of the stored tokens changes


@dataclass(frozen=True)
class TokenRows:
    """One split. Row i is ids[offsets[i]:offsets[i + 1]]; `learn` says which of its tokens are supervised.

    An example is `rows_each` rows: one, or of a preference two, the preferred answer's first.
    """

    ids: np.ndarray
    learn: np.ndarray
    offsets: np.ndarray
    rids: np.ndarray
    is_chat: np.ndarray
    cut_rows: int
    skipped_rows: int
    rows_each: int = 1

    def __len__(self) -> int:
        """Examples."""
        return len(self.rids) // self.rows_each

    def of(self, examples: np.ndarray) -> np.ndarray:
        """Numbers of the rows of these examples."""
        return (examples[:, None] * self.rows_each + np.arange(self.rows_each)).ravel()

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[span], self.learn[span]

    @property
    def supervised_tokens(self) -> int:
        """Tokens that give a loss: the first of a row is only ever an input."""
        return int(self.learn.sum() - self.learn[self.offsets[:-1]].sum())

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def read_examples(data_dir: Path, split: str) -> Iterator[Example]:
    """The rows of one split, in file order. Raises BadData when the folder is not a frozen version."""
    files = sorted(data_dir.glob("data-*.parquet"))
    if not files:
        raise BadData(f"There are no data-*.parquet files in {data_dir.name}. Freeze the dataset first.")
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["_rid", "split", "kind", "messages", "text"]):
                for row in batch.to_pylist():
                    if row["split"] == split:
                        yield Example(
                            rid=row["_rid"],
                            kind=row["kind"],
                            messages=[{key: turn[key] for key in LEARNED} for turn in row["messages"] or []],
                            text=row["text"] or "",
                        )


def read_pairs(data_dir: Path, split: str) -> Iterator[tuple[Example, Example]]:
    """The conversations of one split that were answered in two ways: with the preferred and with the rejected answer.

    Only the answers that were compared are learned. Rows without two answers are left out.
    """
    for path in sorted(data_dir.glob("data-*.parquet")):
        with pq.ParquetFile(path) as file:
            if not {"chosen", "rejected"} <= set(file.schema_arrow.names):
                continue
            for batch in file.iter_batches(columns=["_rid", "split", "messages", "chosen", "rejected"]):
                for row in batch.to_pylist():
                    turns, chosen, rejected = row["messages"] or [], row["chosen"] or [], row["rejected"] or []
                    if row["split"] == split and rejected and 0 < len(chosen) < len(turns):
                        before = turns[: len(turns) - len(chosen)]
                        yield _pair_side(row["_rid"], before, chosen), _pair_side(row["_rid"], before, rejected)


def _pair_side(rid: int, before: list[dict[str, Any]], answer: list[dict[str, Any]]) -> Example:
    asked = [{**{key: turn[key] for key in LEARNED}, "train": False} for turn in before]
    said = [{**{key: turn[key] for key in LEARNED}, "train": turn["role"] == "assistant"} for turn in answer]
    return Example(rid=rid, kind="chat", messages=[*asked, *said])


def count_rows(data_dir: Path) -> int:
    """Rows of all splits."""
    return sum(pq.read_metadata(path).num_rows for path in data_dir.glob("data-*.parquet"))


def tokenised(
    data_dir: Path,
    split: str,
    cache_dir: Path,
    encode: Encode,
    key: dict[str, object],
    max_length: int,
    *,
    pairs: bool = False,
) -> TokenRows:
    """The split's token rows from the cache, made on first use; with `pairs`, of its preferences.

    `key` names everything else that the tokens depend on (tokenizer, template, mask rule).
    """
    manifest = data_dir / "manifest.json"
    version = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else str(data_dir)
    parts = [CODE_VERSION, version, split, max_length, key, *(["pairs"] if pairs else [])]
    name = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    folder = cache_dir / hashlib.sha256(name).hexdigest()[:32]
    with contextlib.suppress(FileNotFoundError):
        os.utime(folder)  # what was asked for last is kept longest
    if not (folder / "info.json").is_file():
        fitted = (
            ((pair[0], *fit_pair(pair, encode, max_length)) for pair in read_pairs(data_dir, split))
            if pairs
            else ((example, *fit(example, encode, max_length)) for example in read_examples(data_dir, split))
        )
        _store(fitted, folder)
    return _open(folder, rows_each=2 if pairs else 1)


def _store(fitted: Iterator[tuple[Example, Pieces, bool]], folder: Path) -> None:
    """Write one split's tokens beside the final place, then rename: a crash leaves nothing half-made."""
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(fitted, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # above all on a full disk
        raise
    try:
        temporary.rename(folder)
    except OSError:  # another run of the same version was faster
        if not (folder / "info.json").is_file():
            raise
        shutil.rmtree(temporary)
    _forget_oldest(folder.parent)


def _write(fitted: Iterator[tuple[Example, Pieces, bool]], folder: Path) -> None:
    offsets, rids, kinds, cut, skipped = [0], [], [], 0, 0
    with (folder / "ids.u32").open("wb") as ids_file, (folder / "learn.u8").open("wb") as learn_file:
        for example, pieces, was_cut in fitted:
            cut += was_cut
            skipped += not pieces
            for ids, learn in pieces:
                ids_file.write(np.asarray(ids, np.uint32).tobytes())
                learn_file.write(np.asarray(learn, np.uint8).tobytes())
                offsets.append(offsets[-1] + len(ids))
                rids.append(example.rid)
                kinds.append(example.kind == "chat")
    np.save(folder / "offsets.npy", np.asarray(offsets, np.int64))
    np.save(folder / "rids.npy", np.asarray(rids, np.int64))
    np.save(folder / "is_chat.npy", np.asarray(kinds, bool))
    (folder / "info.json").write_bytes(orjson.dumps({"cut_rows": cut, "skipped_rows": skipped}))


def _forget_oldest(cache_dir: Path) -> None:
    """Keep what was asked for last; who reads the others now goes on reading them. Broken-off ones go after a day."""
    folders = []
    for path in cache_dir.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run has renamed or forgotten it meanwhile
            folders.append((path.stat().st_mtime, path))
    folders.sort()
    whole = [path for _, path in folders if not path.name.startswith(".tmp-")]
    broken = [path for at, path in folders if path.name.startswith(".tmp-") and at < time.time() - 86_400]
    for path in whole[:-KEPT_FOLDERS]:
        # Renamed first: one that was deleted half-way would be taken for whole.
        aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            path.rename(aside)
            broken.append(aside)
    for path in broken:
        shutil.rmtree(path, ignore_errors=True)


def _open(folder: Path, rows_each: int) -> TokenRows:
    info = orjson.loads((folder / "info.json").read_bytes())
    offsets = np.load(folder / "offsets.npy")
    empty = not offsets[-1]
    return TokenRows(
        ids=np.empty(0, np.uint32) if empty else np.memmap(folder / "ids.u32", np.uint32, mode="r"),
        learn=np.empty(0, bool) if empty else np.memmap(folder / "learn.u8", bool, mode="r"),
        offsets=offsets,
        rids=np.load(folder / "rids.npy"),
        is_chat=np.load(folder / "is_chat.npy"),
        rows_each=rows_each,
        **info,
    )


def fit(example: Example, encode: Encode, max_length: int) -> tuple[Pieces, bool]:
    """The token rows of one example, none over `max_length`, and whether anything was cut.

    Long text becomes windows that overlap by one token, so that every token is predicted once. A long conversation
    loses whole turns from its front (a leading system message stays); the last answer is never cut: an example that
    still does not fit, or has nothing to learn, gives no row.
    """
    ids, learn = encode(example)
    if example.kind == "text":
        windows = [
            (ids[start : start + max_length], learn[start : start + max_length])
            for start in range(0, max(1, len(ids) - 1), max_length - 1)
        ]
        return [window for window in windows if any(window[1][1:])], False
    messages, was_cut = list(example.messages), False
    while len(ids) > max_length:
        shorter = _without_first_turns(messages)
        if shorter is None:
            return [], True
        messages, was_cut = shorter, True
        ids, learn = encode(example.model_copy(update={"messages": messages}))
    return ([(ids, learn)] if any(learn[1:]) else []), was_cut


def fit_pair(pair: tuple[Example, Example], encode: Encode, max_length: int) -> tuple[Pieces, bool]:
    """Two token rows, the preferred answer's first, or none; both lose the same turns from their front."""
    both, was_cut = list(pair), False
    rows = [encode(example) for example in both]
    while max(len(ids) for ids, _ in rows) > max_length:
        shorter = [_without_first_turns(example.messages) for example in both]
        # The question that both answer stays: what is left of each is asked alike.
        if not all(turns and any(not turn.train and turn.role == "user" for turn in turns) for turns in shorter):
            return [], True
        both = [one.model_copy(update={"messages": turns}) for one, turns in zip(both, shorter, strict=True)]
        was_cut = True
        rows = [encode(example) for example in both]
    return (rows if all(any(learn[1:]) for _, learn in rows) else []), was_cut


def _without_first_turns(messages: list[Message]) -> list[Message] | None:
    """Without all before the second question (a leading system message stays); None when there is only one."""
    first = 1 if messages[0].role == "system" else 0
    after = next((i for i in range(first + 1, len(messages)) if messages[i].role == "user"), None)
    return None if after is None else [*messages[:first], *messages[after:]]


def order(rows: TokenRows, seed: int, epoch: int, chats_last_share: float = 0.0) -> np.ndarray:
    """Numbers of the examples of one epoch: a pure function, so a position is (epoch, offset) and nothing else.

    With `chats_last_share` the last share of the epoch's tokens comes from conversations only.
    """
    import torch  # rows become tokens in processes that do without it

    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    mixed = torch.randperm(len(rows), generator=generator).numpy()
    if not chats_last_share or rows.rows_each > 1:
        return mixed
    chats = mixed[rows.is_chat[mixed]]
    wanted = rows.lengths.sum() * chats_last_share
    tail = chats[np.cumsum(rows.lengths[chats]) <= wanted]
    return np.concatenate([mixed[~np.isin(mixed, tail)], tail])
