"""What the page of external models sends."""

import httpx
from pydantic import Field, field_validator

from app.core import addresses
from app.core.forms import FormBase

Key = Field("", max_length=500)


def plain_key(value: str) -> str:
    """A key that fits into a header. Raises ValueError with a sentence."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("A key has no blanks and no special characters. Copy it again.")
    return value


class ExternalForm(FormBase):
    """A model elsewhere: `url` is the address up to /v1."""

    name: str = Field("", max_length=80)
    url: str = Field(min_length=1, max_length=500)
    model: str = Field(min_length=1, max_length=200)
    key: str = Key

    @field_validator("url")
    @classmethod
    def _is_whole(cls, value: str) -> str:
        if not addresses.is_whole(value) or "?" in value or "#" in value:
            raise ValueError("Write a whole address, such as https://api.example.org/v1.")
        if httpx.URL(value).userinfo:
            raise ValueError("Leave the password out of the address: the key has a field of its own.")
        return value.rstrip("/").removesuffix("/chat/completions")

    _key_is_plain = field_validator("key")(plain_key)


class KeyForm(FormBase):
    """Another key for the same address; empty: none."""

    key: str = Key

    _key_is_plain = field_validator("key")(plain_key)
