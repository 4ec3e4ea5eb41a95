"""The Hugging Face hub, or a server that speaks like it: look a model up, fetch it at one commit, resume."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from app.core import storage
from app.core.config import get_settings
from app.core.errors import Invalid, Unavailable
from app.core.work import Lease
from app.recipes import vetting

_OUT_OF_REACH = (
    "The hub cannot be reached from this machine. Check the connection, or choose a model from a folder instead."
)


# Name, bytes, and the SHA-256 that the hub announces for large files ("" for small ones).
HubFile = tuple[str, int, str]


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


def _endpoint() -> str | None:
    return get_settings().hub_endpoint or None


def look_up(ref: str, revision: str) -> Found:
    """Pin `revision` to its commit and list what would be fetched. Raises Invalid or Unavailable with a sentence."""
    try:
        info = HfApi(endpoint=_endpoint(), token=False).model_info(
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
    card: Any = info.card_data or {}
    licence = card.get("license") or next((t[8:] for t in info.tags or [] if t.startswith("license:")), "")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return Found(commit=str(info.sha), licence=str(licence)[:200], files=files)


@dataclass
class Arrived:
    """Bytes so far, told to the lease as they come."""

    lease: Lease
    done: int
    total: int

    def report(self, count: int) -> None:
        """So many bytes more."""
        self.done += count
        self.lease.progress(min(self.done, self.total), self.total)


def _counter(report: Callable[[int], None]) -> type[tqdm]:
    """A progress bar that draws nothing and tells `report` how many bytes more have arrived."""

    class Counter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            report(int(n or 0))
            return None

    return Counter


def download(lease: Lease, ref: str, commit: str, files: list[HubFile], folder: Path) -> None:
    """Fetch `files` at `commit` into `folder`; parts that arrived before a break are not fetched again.

    Raises Unavailable when the connection breaks or what came is not what the hub announced, and whatever
    `lease.progress` raises.
    """
    total = sum(size for _, size, _ in files)
    storage.require_space(total)
    lease.progress(0, total, phase="downloading")
    before = 0
    for name, size, sha256 in sorted(files, key=lambda item: item[1]):
        url = hf_hub_url(ref, name, revision=commit, endpoint=_endpoint())
        try:
            _fetch(url, folder / name, size, sha256, Arrived(lease, before, total))
        except (HfHubHTTPError, HTTPError, OSError) as error:
            raise Unavailable(
                f"The download of {ref} broke off at {name}. What arrived is kept; try it again."
            ) from error
        before += size
        lease.progress(before, total)


def _fetch(url: str, path: Path, size: int, sha256: str, arrived: Arrived) -> None:
    """One file, appended to what is there of it. The library's own download begins anew in every process."""
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    arrived.report(have)
    headers = {**build_hf_headers(token=False), "accept-encoding": "identity"}
    with part.open("ab") as stream:
        http_get(
            url, stream, resume_size=have, headers=headers, expected_size=size, tqdm_class=_counter(arrived.report)
        )
    if sha256 and storage.file_sha256(part) != sha256:
        part.unlink()
        raise OSError(f"{path.name} is not the file that the hub announced")
    part.rename(path)
