"""Tokenizers from outside are tried in a limited process before anything of ours reads with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.text.tokenizer_check import TokenizerFault, check_tokenizer
from tests.worker.tiny import make_tokenizer

ENDLESS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(make_tokenizer().to_str()) | changes))
    return path


def test_a_good_tokenizer_passes(tmp_path: Path) -> None:
    check_tokenizer(written(tmp_path))


@pytest.mark.parametrize("changes", [{"pre_tokenizer": ENDLESS}, {"normalizer": GROWING}])
def test_waste_is_stopped_in_the_child(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerFault, match="too much time or memory"):
        check_tokenizer(written(tmp_path, **changes))


@pytest.mark.parametrize("changes", [{"model": {"type": "Nothing"}}, {"normalizer": {"type": "Shell"}}])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerFault, match="cannot be read"):
        check_tokenizer(written(tmp_path, **changes))
