"""Files of the Hugging Face hub, or of a server that speaks like it: fetched at one commit, and resumed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpcore
from huggingface_hub import hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils._http import default_client_factory
from tqdm import tqdm

from app.core import addresses, storage
from app.core.config import get_settings
from app.core.errors import Unavailable
from app.core.work import Lease

# Name, bytes, and the SHA-256 that the hub announces for large files ("" for small ones).
HubFile = tuple[str, int, str]


def endpoint() -> str | None:
    """The server to ask; None for the Hugging Face hub."""
    return get_settings().hub_endpoint or None


def _client() -> Any:
    """The library's own client, which follows redirects: but never from the hub into a private network."""
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks.get("request", []), _require_public]}
    return client


def _require_public(request: Any) -> None:
    """Raises Unavailable. The server that the operator named may be anywhere; behind a proxy the proxy decides."""
    host = request.url.host
    if host == urlsplit(endpoint() or "https://huggingface.co").hostname or getproxies():
        return
    try:
        addresses.resolved(host, request.url.port or 443)
    except addresses.Forbidden as error:
        raise Unavailable(
            f"The hub sent us to {host}, which is inside a private network, so we do not fetch from it. Whoever runs "
            "this server can open the network with GPT_BUILDER_FETCH_NETWORKS."
        ) from error
    except httpcore.ConnectError as error:
        raise OSError(str(error)) from error


set_client_factory(_client)


def licence_of(info: Any) -> str:
    """The licence that a model or dataset names, empty for none."""
    card: Any = info.card_data or {}
    licence = card.get("license") or next((t[8:] for t in info.tags or [] if t.startswith("license:")), "")
    return (", ".join(map(str, licence)) if isinstance(licence, list) else str(licence))[:200]


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


def local_name(name: str) -> str:
    """The name of a file of the hub in one flat folder."""
    return name.replace("/", "__").replace("\\", "__")


def download(
    lease: Lease, ref: str, commit: str, files: list[HubFile], folder: Path, repo_type: str | None = None
) -> None:
    """Fetch `files` at `commit` into `folder`; parts that arrived before a break are not fetched again.

    Raises Unavailable when the connection breaks or what came is not what the hub announced, and whatever
    `lease.progress` raises.
    """
    total = sum(size for _, size, _ in files)
    storage.require_space(total)
    lease.progress(0, total, phase="downloading")
    before = 0
    for name, size, sha256 in sorted(files, key=lambda item: item[1]):
        url = hf_hub_url(ref, name, revision=commit, endpoint=endpoint(), repo_type=repo_type)
        try:
            _fetch(url, folder / local_name(name), size, sha256, Arrived(lease, before, total))
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
