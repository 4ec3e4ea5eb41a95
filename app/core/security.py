"""Secrets of the installation: the key file, tokens kept as SHA-256, values encrypted at rest, CSRF tokens."""

import base64
import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.core.config import get_settings

_SIGNATURE_BYTES = 32


@lru_cache
def _keys(path: Path) -> tuple[bytes, ...]:
    """The keys in the file, newest first; made with mode 0600 when there is none.

    Several processes may start at once: the file is linked into place whole, and the first one wins.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, Fernet.generate_key() + b"\n")
            os.fsync(descriptor)
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            os.close(descriptor)
            draft.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return tuple(line.encode() for line in path.read_text().split())


def _secret(purpose: str) -> bytes:
    """A key for one purpose, derived from the installation's oldest key so that a new key signs nobody out."""
    oldest = _keys(get_settings().secrets_path)[-1]
    return hmac.digest(base64.urlsafe_b64decode(oldest), purpose.encode(), "sha256")


def salt(purpose: str) -> str:
    """A salt for one purpose, 64 hexadecimal digits; the same as long as the installation's oldest key stays."""
    return _secret(f"salt:{purpose}").hex()


def _fernet() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in _keys(get_settings().secrets_path)])


def encrypt(text: str) -> str:
    """The text encrypted with the installation's key, for columns that hold other services' secrets."""
    return _fernet().encrypt(text.encode()).decode()


def decrypt(sealed: str) -> str:
    """The text behind `encrypt`. Raises ValueError when the key file is another one or the value was changed."""
    try:
        return _fernet().decrypt(sealed.encode()).decode()
    except InvalidToken as error:
        raise ValueError("the stored secret does not fit the key file") from error


def new_token() -> str:
    """A random token of 256 bits, for cookies and links."""
    return secrets.token_urlsafe(32)


def token_sha256(token: str) -> bytes:
    """What is stored of a token. Tokens are random, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def is_same(first: str | bytes, second: str | bytes) -> bool:
    """Comparison in constant time."""
    return hmac.compare_digest(_as_bytes(first), _as_bytes(second))


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")


def csrf_token(cookie: str) -> str:
    """A token bound to a session or visitor cookie; masked, so that compression of the page gives nothing away."""
    signature = hmac.digest(_secret("csrf"), cookie.encode(), "sha256")
    mask = secrets.token_bytes(_SIGNATURE_BYTES)
    masked = bytes(a ^ b for a, b in zip(mask, signature, strict=True))
    return base64.urlsafe_b64encode(mask + masked).rstrip(b"=").decode()


def is_csrf_token(token: str, cookie: str) -> bool:
    """Whether the token was made for this cookie."""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii") + b"==")
    except ValueError:
        return False
    if len(raw) != 2 * _SIGNATURE_BYTES:
        return False
    signature = bytes(a ^ b for a, b in zip(raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:], strict=True))
    return hmac.compare_digest(signature, hmac.digest(_secret("csrf"), cookie.encode(), "sha256"))
