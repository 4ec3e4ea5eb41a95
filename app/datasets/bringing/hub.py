"""Datasets of the Hugging Face hub: which files of data there are at one commit. Scripts are never fetched."""

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
from app.core.hub import HubFile, endpoint, licence_of

FILE_LIMIT = 200
_DATA = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".arrow", ".ndjson", ".md", ".xlsx", ".zip", ".pdf")
_PACKED = (".gz", ".zst", ".bz2", ".xz")
# Files that describe a dataset and hold no rows of it.
_ABOUT = ("readme.md", "license", "dataset_infos.json", "dataset_info.json", "state.json", ".gitattributes")


@dataclass(frozen=True)
class Found:
    """What the hub says about a dataset at one commit."""

    commit: str
    licence: str
    files: list[HubFile]
    has_script: bool


def is_data(name: str) -> bool:
    """Whether a file may hold rows."""
    plain = name.lower()
    plain = next((plain[: -len(s)] for s in _PACKED if plain.endswith(s)), plain)
    last = plain.rsplit("/", 1)[-1]
    return plain.endswith(_DATA) and last not in _ABOUT and ".." not in name and not name.startswith("/")


def look_up(ref: str, revision: str) -> Found:
    """Pin `revision` to its commit and list the files of data. Raises Invalid or Unavailable with a sentence."""
    try:
        info = HfApi(endpoint=endpoint(), token=False).dataset_info(
            ref, revision=revision, files_metadata=True, timeout=8
        )
    except GatedRepoError:
        raise Invalid(
            fields={"address": "The owner of this dataset wants to be asked first. Choose an open one."}
        ) from None
    except RevisionNotFoundError:
        raise Invalid(
            fields={"revision": "This dataset has no such revision. Leave it empty for the newest."}
        ) from None
    except RepositoryNotFoundError:
        raise Invalid(fields={"address": "The hub has no open dataset of this name. Check owner and name."}) from None
    except (HfHubHTTPError, HTTPError, OSError):
        raise Unavailable(
            "The hub cannot be reached from this machine. Check the connection, or bring the files themselves."
        ) from None
    names = [item.rfilename for item in info.siblings or []]
    files = [
        (item.rfilename, int(item.size or 0), item.lfs.sha256 if item.lfs else "")
        for item in info.siblings or []
        if is_data(item.rfilename)
    ]
    if not files:
        raise Invalid(
            fields={"address": "This dataset has no files of data, only programs, which we never run. Choose another."}
        )
    return Found(str(info.sha), licence_of(info), files[:FILE_LIMIT], any(name.endswith(".py") for name in names))
