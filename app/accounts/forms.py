"""The forms of accounts: what people type, and the sentences for what does not fit."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from app.accounts import passwords
from app.core.forms import FormBase

_EMAIL = re.compile(r"^[^@\s\"(),:;<>\[\]\\]{1,64}@[^@\s\"(),:;<>\[\]\\]{1,189}$")


def _email(text: str) -> str:
    if not _EMAIL.match(text):
        raise ValueError("Write an e-mail address, such as ana@example.org.")
    return text.casefold()


def _optional_email(text: str) -> str:
    return _email(text) if text else ""


Email = Annotated[str, Field(max_length=254), AfterValidator(_email)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
# Not stripped: blanks at the ends of a password count. Longer ones are refused before they are hashed.
Password = Annotated[str, Field(min_length=1, max_length=1000, strict=True)]


class _PasswordForm(FormBase):
    model_config = {**FormBase.model_config, "str_strip_whitespace": False}


class SignInForm(_PasswordForm):
    email: Annotated[str, Field(min_length=1, max_length=254)]
    password: Password
    next: Annotated[str, Field(max_length=2000)] = "/"


class NewAccountForm(_PasswordForm):
    """A name, an address and a new password."""

    name: Name
    email: Email
    password: Password

    @model_validator(mode="before")
    @classmethod
    def _trim(cls, values: Any) -> Any:
        if isinstance(values, dict):
            texts = {key: text.strip() for key, text in values.items() if key != "password" and isinstance(text, str)}
            return values | texts
        return values


class SetupForm(NewAccountForm):
    token: Annotated[str, Field(min_length=1, max_length=100)]


class JoinForm(NewAccountForm):
    token: Annotated[str, Field(min_length=1, max_length=200)]


class TokenForm(FormBase):
    token: Annotated[str, Field(min_length=1, max_length=200)]


class ResetForm(_PasswordForm):
    token: Annotated[str, Field(min_length=1, max_length=200)]
    password: Password


class PasswordForm(_PasswordForm):
    current: Password
    password: Password


class NameForm(FormBase):
    name: Name


class InviteForm(FormBase):
    workspace_id: Annotated[str, Field(max_length=20)]
    role: Literal["viewer", "annotator", "editor", "owner"]
    email: Annotated[str, Field(max_length=254), AfterValidator(_optional_email)] = ""


class RoleForm(FormBase):
    role: Literal["viewer", "annotator", "editor", "owner"]


def weak(password: str, *, email: str = "", name: str = "") -> dict[str, str]:
    """The error of a password that the rules refuse, by field."""
    sentence = passwords.problem(password, email=email, name=name)
    return {"password": sentence} if sentence else {}
