"""The work of a remote source: fetch it, and make source files of what arrived. Called by the worker."""

import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from app.core import addresses, security, storage
from app.core.hub import download, local_name
from app.core.work import Lease
from app.datasets import service
from app.datasets.bringing import bucket, web, website
from app.datasets.bringing.service import folder_of
from app.datasets.models import RemoteSource
from app.datasets.uploads import clean_filename

# Path of the bytes, the name to show, the address they came from.
Arrived = tuple[Path, str, str]


def bring(lease: Lease, source: RemoteSource, look: Callable[[], None]) -> None:
    """Fetch `source` and write its files down. `look()` is called with every step and may raise to stop.

    Raises what fetching raises (with sentences), Cancelled and LostLease.
    """
    folder = folder_of(source)

    def tell(done: int, total: int) -> None:
        look()
        lease.progress(done, total)

    lease.progress(0, 0, phase="fetching")
    details = dict(source.details)
    match source.kind:
        case "web":
            arrived = _web(source, folder, tell)
        case "site":
            arrived, details["skipped"] = _site(source, folder, tell)
        case "hub":
            arrived = _hub(lease, source, folder)
        case _:
            arrived = _bucket(source, folder, tell)
    lease.progress(0, 0, phase="keeping")
    digests = [storage.file_sha256(path) for path, _name, _address in arrived]
    with lease.write(details=details, sealed_keys="") as session:
        for (path, name, address), sha256 in zip(arrived, digests, strict=True):
            service.adopt(
                session, user_id=source.created_by, project_id=source.project_id, filename=clean_filename(name),
                path=path, sha256=sha256, origin=source.kind, licence=source.licence, consent=source.consent,
                origin_url=address,
            )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)


def _web(source: RemoteSource, folder: Path, tell: web.Tell) -> list[Arrived]:
    with addresses.client() as client:
        path, name, address = web.download(client, source.address, folder, tell)
    return [(path, name, address)]


def _site(source: RemoteSource, folder: Path, tell: web.Tell) -> tuple[list[Arrived], list[list[str]]]:
    with addresses.client() as client:
        site = website.Crawl(client, source.address, folder, source.details["page_limit"]).run(tell)
    count = len(site.kept)
    name = f"{urlsplit(source.address).hostname}, {count} {'page' if count == 1 else 'pages'}.zip"
    skipped = [list(pair) for pair in site.skipped[: website.SKIPPED_SHOWN]]
    return [(website.packed(site, folder), name, source.address)], skipped


def _hub(lease: Lease, source: RemoteSource, folder: Path) -> list[Arrived]:
    files = [(str(name), int(size), str(sha256)) for name, size, sha256 in source.details["files"]]
    commit = source.details["commit"]
    download(lease, source.address, commit, files, folder, repo_type="dataset")
    address = f"https://huggingface.co/datasets/{source.address}/blob/{commit}"
    title = source.address.rsplit("/", 1)[-1]
    return [
        (folder / local_name(name), f"{title}-{local_name(name)}", f"{address}/{name}") for name, _size, _sha in files
    ]


def _bucket(source: RemoteSource, folder: Path, tell: web.Tell) -> list[Arrived]:
    key, _, secret = (security.decrypt(source.sealed_keys) if source.sealed_keys else "").partition("\n")
    system = bucket.filesystem(source.details["endpoint"], key, secret)
    files = bucket.listed(system, source.address.removeprefix("s3://"))
    total, before = sum(size for _name, size in files), 0
    arrived: list[Arrived] = []
    for number, (name, size) in enumerate(files):
        path = folder / f"{number:04d}"
        bucket.fetch(system, name, size, path, before, total, tell)
        before += size
        arrived.append((path, name.rsplit("/", 1)[-1], f"s3://{name}"))
    return arrived
