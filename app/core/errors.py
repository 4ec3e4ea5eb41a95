"""What can go wrong, as nouns with a status. Services raise them; one place answers page, fragment or JSON."""

from typing import ClassVar


class AppError(Exception):
    """A refusal in words for a person: `sentence` says what is wrong and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    default: ClassVar[str] = "Something went wrong on our side. Nothing of yours was changed."

    def __init__(self, sentence: str = "", *, code: str = "", param: str | None = None) -> None:
        self.sentence = sentence or self.default
        self.error_code = code or type(self).code
        self.param = param
        super().__init__(self.sentence)


class BadRequest(AppError):
    status, code, default = 400, "bad_request", "The request could not be understood."


class Unauthenticated(AppError):
    status, code, default = 401, "unauthenticated", "Sign in to go on."


class Forbidden(AppError):
    """The asker is known and may not. `workspace_id` says in whose audit log the refusal belongs."""

    status, code, default = 403, "forbidden", "Your role in this workspace does not allow this."

    def __init__(self, sentence: str = "", *, code: str = "", workspace_id: str | None = None) -> None:
        super().__init__(sentence, code=code)
        self.workspace_id = workspace_id


class NotFound(AppError):
    status, code, default = (
        404,
        "not_found",
        "There is nothing here. It may have been deleted, or the address has a typo.",
    )


class Conflict(AppError):
    status, code, default = 409, "conflict", "This changed in the meantime. Reload and look again."


class Gone(AppError):
    status, code, default = 410, "gone", "This was deleted."


class TooLarge(AppError):
    status, code, default = 413, "too_large", "This is larger than the limit."


class Invalid(AppError):
    """A form or body that does not fit. `fields` maps a field's name to its sentence."""

    status, code, default = 422, "invalid", "Some of the answers need another look."

    def __init__(
        self,
        sentence: str = "",
        *,
        fields: dict[str, str] | None = None,
        code: str = "",
        param: str | None = None,
    ):
        super().__init__(sentence or (next(iter(fields.values())) if fields else ""), code=code, param=param)
        self.fields = fields or {}


class TooMany(AppError):
    status, code, default = 429, "too_many_requests", "Too many requests. Wait a moment, then try again."

    def __init__(self, sentence: str = "", *, retry_after_s: float = 10, code: str = "") -> None:
        super().__init__(sentence, code=code)
        self.retry_after_s = retry_after_s


class Unavailable(AppError):
    status, code, default = (
        503,
        "unavailable",
        "A part of the system is starting or out of reach. Your work is safe.",
    )

    def __init__(self, sentence: str = "", *, retry_after_s: float = 5, code: str = "") -> None:
        super().__init__(sentence, code=code)
        self.retry_after_s = retry_after_s


class ModelFailed(AppError):
    """The model itself could not answer; asking again does not help."""

    status, code, default = 500, "model_failed", "The model could not answer. The log says why."


class DiskFull(AppError):
    status, code, default = (
        507,
        "disk_full",
        "The disk is full. Free some space, then try again; nothing was lost.",
    )
