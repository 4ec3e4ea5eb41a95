"""The recipe page's one form: every button of it posts all of its fields."""

from typing import Any

from app.recipes.presets import PACED

_OWN = ("do", "preset", "method", "version_id", "name", "base", "client_request_id", "shape")


def form_changes(values: dict[str, Any]) -> dict[str, Any]:
    """The posted page as arguments of `service.save`."""
    texts = {
        key: value if isinstance(value, str) else ", ".join(filter(None, value)) if key == "devices" else value[-1]
        for key, value in values.items()
    }
    has_drawer, _, shown = str(texts.pop("drawer", "")).partition(":")
    shown_preset, *paced = shown.split(":")
    return {
        "preset": texts.get("preset"),
        "method": texts.get("method"),
        "version_id": texts.get("version_id"),
        "name": texts.get("name"),
        "values": {key: value for key, value in texts.items() if key not in _OWN} if has_drawer == "shown" else None,
        "shown_preset": shown_preset,
        "shown_paced": dict(zip(PACED, paced, strict=False)),
        "reset": texts.get("do") == "reset",
        "shape": _whole(texts.get("shape", "")) if texts.get("do") == "size" else None,
    }


def _whole(text: str) -> int:
    """A place of the slider; one that cannot be for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 999
