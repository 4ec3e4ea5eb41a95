"""Tries a tokenizer from outside in a limited child: five seconds of processor, 2 GB, and texts that bad ones choke on.

A tokenizer is a program: its expressions may never come to an end, its replacements may write gigabytes, and what
panics in the tokenizers library is no Exception. `python -m app.text.tokenizer_check FILE` is the child.
"""

import subprocess
import sys
from pathlib import Path

CPU_S, MEMORY_BYTES, FILE_BYTES = 5, 2 * 2**30, 64 * 2**20
# A good tokenizer makes at most a few ids of a character: one of each of its bytes, and marks at the ends.
MOST_IDS_A_CHARACTER, FEW_IDS = 8, 64
_TRIALS = (
    "How do I reset my password? Open Settings, then choose Security.",
    "a" * 4000 + "!",
    "ab" * 2000 + "\n",
    " " * 4000 + "x",
    "1" * 4000 + ".",
    "é🧀 字" * 500,
)
_REFUSED = "The tokenizer of this model uses far too much time or memory, so it was stopped. Choose another base model."


class TokenizerFault(ValueError):
    """A tokenizer that cannot be used; the message is a sentence for people."""


def check_tokenizer(path: Path) -> None:
    """Let the child read the tokenizer and a few texts with it. Raises TokenizerFault for waste and errors alike."""
    if path.stat().st_size > FILE_BYTES:
        raise TokenizerFault(f"The tokenizer.json of this model is over {FILE_BYTES // 2**20} MB. Choose another one.")
    try:
        child = subprocess.run(
            [sys.executable, "-m", "app.text.tokenizer_check", str(path)],
            capture_output=True,
            timeout=20 * CPU_S,
            check=False,
            env={
                "PYTHONPATH": ":".join(part for part in sys.path if part),
                "PATH": "",
                "TOKENIZERS_PARALLELISM": "false",
                "RAYON_NUM_THREADS": "1",
            },
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerFault(_REFUSED) from error
    if child.returncode == 3:
        raise TokenizerFault("The tokenizer.json of this model cannot be read. Choose a model with a fast tokenizer.")
    if child.returncode != 0:
        raise TokenizerFault(_REFUSED)


def _limit() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _main(path: str) -> int:
    _limit()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception:
        return 3
    for text in _TRIALS:
        if len(tokenizer.encode(text).ids) > MOST_IDS_A_CHARACTER * len(text) + FEW_IDS:
            return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1]))
