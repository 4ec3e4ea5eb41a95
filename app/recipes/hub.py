"""The Hugging Face hub, or a server that speaks like it: look a model up, fetch it at one commit, resume."""

import threading
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.core.errors import Invalid, Unavailable
from app.core.hub import HubFile, download, endpoint, licence_of
from app.recipes import vetting

__all__ = ["Found", "download", "look_up"]
_OUT_OF_REACH = (
    "The hub cannot be reached from this machine. Check the connection, or choose a model from a folder instead."
)


# How many may wait for the hub at once: each wait keeps a thread from rendering pages.
_places = threading.BoundedSemaphore(4)


@dataclass(frozen=True)
class Found:
    """What the hub says about a model at one commit."""

    commit: str
    licence: str
    files: list[HubFile]

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(size for _, size, _ in self.files)


def look_up(ref: str, revision: str) -> Found:
    """Pin `revision` to its commit and list what would be fetched. Raises Invalid or Unavailable with a sentence."""
    if not _places.acquire(blocking=False):
        raise Unavailable("The hub is being asked by several people right now. Try again in a few seconds.")
    try:
        return _looked_up(ref, revision)
    finally:
        _places.release()


def _looked_up(ref: str, revision: str) -> Found:
    try:
        info = HfApi(endpoint=endpoint(), token=False).model_info(
            ref, revision=revision, files_metadata=True, timeout=8
        )
    except GatedRepoError:
        raise Invalid(
            fields={"ref": "The owner of this model wants to be asked first. Choose an open model."}
        ) from None
    except RevisionNotFoundError:
        raise Invalid(fields={"revision": "This model has no such revision. Leave it empty for the newest."}) from None
    except RepositoryNotFoundError:
        raise Invalid(fields={"ref": "The hub has no open model of this name. Check owner and name."}) from None
    except (HfHubHTTPError, HTTPError, OSError):
        raise Unavailable(_OUT_OF_REACH) from None
    siblings = [item for item in info.siblings or [] if vetting.is_wanted(item.rfilename)]
    files = [(item.rfilename, int(item.size or 0), item.lfs.sha256 if item.lfs else "") for item in siblings]
    names = {name for name, _, _ in files}
    if not any(name.endswith(".safetensors") for name in names):
        raise Invalid(
            fields={"ref": "This model has no safetensors weights, the only kind we open. Choose another one."}
        )
    if "tokenizer.json" not in names or "config.json" not in names:
        raise Invalid(fields={"ref": "This model has no tokenizer.json or config.json, which training needs."})
    return Found(commit=str(info.sha), licence=licence_of(info), files=files)
