"""Passwords: argon2id, at least twelve characters, none that everybody tries first.

The list of common ones is the part of Django's (BSD-3-Clause, after R. Williams' frequency list) that the length rule
lets through, and the words that people put digits behind.
"""

import re
import threading
from functools import lru_cache
from pathlib import Path

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

MIN_LENGTH, MAX_LENGTH = 12, 256
HELP = "At least 12 characters. Three or four unrelated words are easy to remember and hard to guess."
_COMMON = Path(__file__).with_name("common_passwords.txt")
_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz", "qwertzuiop", "azertyuiop")
_hashing = PasswordHash((Argon2Hasher(),))
# Each check takes 64 MB and all cores for a moment: a flood of sign-ins waits in line instead of taking the memory.
_places = threading.BoundedSemaphore(4)


def hashed(password: str) -> str:
    """argon2id hash with its parameters."""
    with _places:
        return _hashing.hash(password)


@lru_cache
def unknown_hash() -> str:
    """A hash that no password fits, so that an unknown account costs the same time as a known one."""
    return _hashing.hash("\0 nobody has this password")


def verify(password: str, password_hash: str | None) -> tuple[bool, str | None]:
    """Whether the password fits, and a new hash where the stored one has outdated parameters."""
    nobody = unknown_hash()  # asked for in both cases: its first call takes as long as a check
    with _places:
        is_right, newer = _hashing.verify_and_update(password, password_hash or nobody)
    return is_right and password_hash is not None, newer


@lru_cache
def _common() -> frozenset[str]:
    return frozenset(_COMMON.read_text(encoding="utf-8").split("\n"))


def problem(password: str, *, email: str = "", name: str = "") -> str | None:
    """The sentence that says why a password is refused, or None."""
    if len(password) < MIN_LENGTH:
        return f"This is too short: {len(password)} of at least {MIN_LENGTH} characters."
    if len(password) > MAX_LENGTH:
        return f"This is too long: at most {MAX_LENGTH} characters."
    plain = password.casefold()
    bare = re.sub(r"[^a-z]", "", plain)
    if plain in _common() or plain.strip("0123456789!?.*#_- ") in _common() or _is_walk(plain):
        return "This is one of the passwords that are tried first. Take three or four unrelated words instead."
    own = [re.sub(r"[^a-z]", "", part.casefold()) for part in (email.split("@")[0], name, "gptbuilder")]
    if any(len(part) >= 4 and part in bare and len(bare) - len(part) < 4 for part in own):
        return "This is made of your name or address. Take three or four unrelated words instead."
    return None


def _is_walk(plain: str) -> bool:
    """Few different letters, one part repeated, or a walk along the keyboard."""
    if len(set(plain)) < 5:
        return True
    if any(plain == (plain[:size] * len(plain))[: len(plain)] for size in range(1, len(plain) // 2 + 1)):
        return True
    steps = "".join(row + row[::-1] for row in _ROWS)
    covered = sum(plain[at : at + 3] in steps for at in range(len(plain) - 2))
    return covered >= 0.7 * (len(plain) - 2)
