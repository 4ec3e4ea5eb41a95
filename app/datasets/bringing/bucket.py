"""S3-compatible storage: the files below s3://bucket/path, read through s3fs with the person's own keys or none."""

import socket
from pathlib import Path
from typing import Any

import httpcore
from aiohttp.abc import AbstractResolver, ResolveResult
from botocore.exceptions import BotoCoreError
from fsspec.asyn import sync

from app.core import addresses, storage
from app.core.errors import Invalid, Unavailable
from app.datasets.bringing.web import Tell

FILE_LIMIT = 500
_BLOCK, _CHUNK = 8 << 20, 1 << 18
# For a list or a block: beyond this the storage is too slow to be waited for.
_PATIENCE_S = 300.0
_BROKEN = (OSError, ValueError, BotoCoreError, httpcore.ConnectError)


class _Resolver(AbstractResolver):
    """aiohttp asks this for the address of a host: only allowed ones are given."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found: list[ResolveResult] = []
        for address in addresses.resolved(host, port):
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            found.append({"hostname": host, "host": address, "port": port, "family": kind, "proto": 0, "flags": 0})
        return found

    async def close(self) -> None:
        """Nothing is held."""


def filesystem(endpoint: str, key: str, secret: str) -> Any:
    """The storage at `endpoint` (empty: Amazon's). Keys of this server are never used."""
    import s3fs

    return s3fs.S3FileSystem(
        key=key or None,
        secret=secret or None,
        anon=not key,
        endpoint_url=endpoint or None,
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={
            "connector_args": {"resolver": _Resolver(), "socket_factory": addresses.checked_socket},
            "retries": {"max_attempts": 3},
            "connect_timeout": 10,
            "read_timeout": 30,
            "proxies": {},
            "s3": {"addressing_style": "path"} if endpoint else {},
        },
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def _broken(error: Exception, sentence: str) -> Invalid | Unavailable:
    if addresses.is_refusal(error):
        return Invalid(
            "This storage is inside a private network, or sends us into one, so we do not fetch from it. Whoever runs "
            "this server can open the network with GPT_BUILDER_FETCH_NETWORKS."
        )
    if isinstance(error, TimeoutError):
        return Unavailable("The storage answers too slowly. What arrived is kept; try it again later.")
    return Unavailable(sentence)


async def _piece(system: Any, key: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file, never more, whatever the storage sends."""
    bucket, name, _version = system.split_path(key)
    answer = await system._call_s3("get_object", Bucket=bucket, Key=name, Range=f"bytes={start}-{end - 1}")
    body, found = answer["Body"], bytearray()
    try:
        if start and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise OSError("the storage sends no part of a file")
        while len(found) < end - start and (more := await body.read(min(_CHUNK, end - start - len(found)))):
            found += more
    finally:
        body.close()
    return bytes(found)


def listed(system: Any, path: str) -> list[tuple[str, int]]:
    """(key, bytes) of the files at or below `path`. Raises Invalid, Unavailable."""
    try:
        found = sync(system.loop, system._find, path, detail=True, timeout=_PATIENCE_S)
    except PermissionError as error:
        raise Invalid("The storage does not let us in with these keys. Check key, secret and bucket.") from error
    except FileNotFoundError as error:
        raise Invalid("There is no such bucket or file. Check the address.") from error
    except _BROKEN as error:
        raise _broken(error, "The storage cannot be reached. Check its address and the connection.") from error
    files = [(str(name), int(entry.get("size") or 0)) for name, entry in sorted(found.items())]
    files = [(name, size) for name, size in files if size and not name.endswith("/")]
    if not files:
        raise Invalid("There is no file at this address. Check bucket and path.")
    if len(files) > FILE_LIMIT:
        raise Invalid(f"There are over {FILE_LIMIT} files at this address. Give a longer path.")
    return files


def fetch(system: Any, key: str, size: int, target: Path, before: int, total: int, tell: Tell) -> None:
    """One file, block by block, going on where an earlier attempt stopped. Raises Unavailable, DiskFull."""
    have = target.stat().st_size if target.exists() else 0
    have = have if have <= size else 0
    storage.require_space(size - have)
    with target.open("r+b" if have else "wb") as out:
        out.seek(have)
        while have < size:
            tell(before + have, total)
            try:
                end = min(size, have + _BLOCK)
                block = sync(system.loop, _piece, system, key, have, end, timeout=_PATIENCE_S)
            except _BROKEN as error:
                raise _broken(error, f"The connection broke at {key}. What arrived is kept; try it again.") from error
            if not block:
                raise Unavailable(f"{key} is shorter than its storage says. Try it again.")
            out.write(block)
            have += len(block)
        out.truncate()
    tell(before + size, total)
