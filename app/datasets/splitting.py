"""Train, validation and test: rows that belong together stay on one side, the same rows always on the same side.

Groups are unions of rows with the same content or the same folded question. Within each stratum (the label, where
answers are labels) groups are ordered by a keyed hash and handed to the split with the largest shortage.
"""

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import xxhash
from pydantic import Field, model_validator

from app.contracts.base import Contract
from app.datasets.cleaning import Example, content_key

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LARGE_GROUP_SHARE = 0.02
STRATA_LIMIT = 1000


class SplitSettings(Contract):
    """Shares in per cent. The rest is for training."""

    validation_percent: float = Field(5, ge=0, le=50, title="For validation", description="per cent")
    test_percent: float = Field(5, ge=0, le=50, title="For the test", description="per cent")
    validation_rows_min: int = Field(50, ge=0, le=100_000)
    validation_rows_max: int = Field(2000, ge=1, le=1_000_000)
    seed: int = Field(1, ge=0, le=2**31 - 1, title="Seed of the order")
    is_stratified: bool = Field(True, title="Same mix of labels on every side")

    @model_validator(mode="after")
    def _leaves_training(self) -> "SplitSettings":
        if self.validation_percent + self.test_percent > 80:
            raise ValueError("Validation and test together may take at most 80 per cent.")
        return self


_WORDLESS = re.compile(r"[\W_]+")


def folded(text: str) -> str:
    """A text without case, punctuation and spacing; texts of signs only stay as they are."""
    return _WORDLESS.sub(" ", text.casefold()).strip() or " ".join(text.split())


def prompt_key(example: Example) -> int | None:
    """64-bit hash of the folded question (all turns before the first learned answer, without the system prompt)."""
    if example["kind"] == "text":
        return None
    asked = []
    for message in example["messages"]:
        if message["role"] == "assistant" and message["train"]:
            break
        if message["role"] != "system":
            asked.append(folded(message["content"]))
    return xxhash.xxh3_64_intdigest("\x1f".join(asked).encode("utf-8", "surrogatepass")) if any(asked) else None


class Grouping:
    """Union-find over rows; keeps 8 bytes of content hash and a few of links for each. Feed rows in order."""

    def __init__(self) -> None:
        self.content = array("Q")
        self.labels: list[str] = []
        self._parent = array("q")
        self._first: dict[tuple[str, int], int] = {}

    def add(self, example: Example) -> None:
        """The next row."""
        row = len(self._parent)
        self._parent.append(row)
        self.content.append(content_key(example, is_folded=True))
        self.labels.append(example["label"])
        prompt = prompt_key(example)
        keys = [("content", self.content[row])] + ([("prompt", prompt)] if prompt is not None else [])
        for key in keys:
            other = self._first.setdefault(key, row)
            self._unite(row, other)

    def _root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def _unite(self, one: int, other: int) -> None:
        a, b = self._root(one), self._root(other)
        if a != b:
            self._parent[max(a, b)] = min(a, b)

    def groups(self) -> dict[int, list[int]]:
        """Root row to its rows, in order."""
        found: dict[int, list[int]] = defaultdict(list)
        for row in range(len(self._parent)):
            found[self._root(row)].append(row)
        return found


def _order(seed: int, key: int) -> bytes:
    return hashlib.blake2b(key.to_bytes(8), key=seed.to_bytes(8), digest_size=8).digest()


def wanted_rows(total: int, settings: SplitSettings) -> dict[Split, int]:
    """How many rows each side should have: the shares, with the bounds of validation, and most rows in training."""
    bounded: dict[Split, int] = {}
    for split, percent in (("validation", settings.validation_percent), ("test", settings.test_percent)):
        rows = round(total * percent / 100)
        if percent and total:
            rows = min(max(rows, settings.validation_rows_min), settings.validation_rows_max)
            # A small set keeps at least four fifths for training; every side that is asked for gets a row.
            rows = max(1, min(rows, total // 10)) if total >= 3 else 0
        bounded[split] = rows  # type: ignore[index]
    return {"train": total - sum(bounded.values()), **bounded}


def assign(
    grouping: Grouping, settings: SplitSettings, known: Mapping[int, Split] | None = None
) -> tuple[list[Split], dict[str, Any]]:
    """(split of each row, report). `known`: group key to split of an earlier version; those groups stay there.

    The group key is the smallest content hash in the group, so it does not depend on the order of the files.
    """
    total = len(grouping.content)
    wanted = wanted_rows(total, settings)
    splits: list[Split] = ["train"] * total
    strata: dict[str, list[tuple[int, list[int]]]] = defaultdict(list)
    groups = grouping.groups()
    distinct = set(grouping.labels)
    is_stratified = settings.is_stratified and 1 < len(distinct) <= STRATA_LIMIT
    large, placed = [], {split: 0 for split in SPLITS}
    for rows in groups.values():
        key = min(grouping.content[row] for row in rows)
        if known and key in known:
            _place(rows, known[key], splits, placed)
        elif len(rows) > max(20, LARGE_GROUP_SHARE * total):
            large.append(len(rows))
            _place(rows, "train", splits, placed)
        else:
            strata[grouping.labels[rows[0]] if is_stratified else ""].append((key, rows))
    share = {split: wanted[split] / total if total else 0.0 for split in SPLITS}
    carried = dict.fromkeys(SPLITS, 0.0)
    for label in sorted(strata):
        members = sorted(
            strata[label], key=lambda item: (-(len(item[1]) > 1) * len(item[1]), _order(settings.seed, item[0]))
        )
        size = sum(len(rows) for _key, rows in members)
        # What rounding left over in one stratum is owed to the same split in the next.
        owed = {split: size * share[split] + carried[split] for split in SPLITS}
        for _key, rows in members:
            split = max(SPLITS, key=lambda s: owed[s])
            owed[split] -= len(rows)
            _place(rows, split, splits, placed)
        carried = owed
    report = {
        "wanted": wanted,
        "placed": placed,
        "groups": len(groups),
        "grouped_rows": sum(len(rows) for rows in groups.values() if len(rows) > 1),
        "large_groups": sorted(large, reverse=True)[:20],
        "strata": len(strata),
    }
    return splits, report


def leaks(grouping_keys: Iterable[tuple[Split, int, int | None]]) -> int:
    """How many rows outside training share content or question with a training row: the proof, must be 0."""
    rows = list(grouping_keys)
    contents = {content for split, content, _prompt in rows if split == "train"}
    prompts = {prompt for split, _content, prompt in rows if split == "train" and prompt is not None}
    return sum(split != "train" and (content in contents or prompt in prompts) for split, content, prompt in rows)


def _place(rows: Iterable[int], split: Split, splits: list[Split], placed: dict[Split, int]) -> None:
    for row in rows:
        splits[row] = split
        placed[split] += 1
