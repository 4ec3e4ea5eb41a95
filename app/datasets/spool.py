"""The bytes of an upload on their way to disk: one writer at a time, hashed while they stream, no session held."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import IO, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.core import storage
from app.core.errors import AppError, Conflict, DiskFull, TooLarge
from app.datasets.uploads import spool_path

WRITE_BYTES = 1 << 20
SAVE_EVERY_BYTES = 16 << 20
HASHES_KEPT = 256


class Locked(AppError):
    """Another request writes to the same upload."""

    status, code, default = 423, "locked", "This upload is being received already. Try again in a moment."


# Running hashes by upload: (bytes hashed, hash). Lost with the process; then the file is read once at the end.
_hashes: OrderedDict[str, tuple[int, Any]] = OrderedDict()


def sha256_of(upload_id: str, size_bytes: int) -> str:
    """SHA-256 of the finished spool file, from the running hash where it is whole."""
    known, running = _hashes.pop(upload_id, (-1, None))
    return running.hexdigest() if known == size_bytes else storage.file_sha256(spool_path(upload_id))


def _open(upload_id: str, offset: int) -> IO[bytes]:
    """The spool file, locked, cut to `offset` (what was written after the last saved offset is sent again)."""
    try:
        stream = spool_path(upload_id).open("r+b", buffering=0)
    except FileNotFoundError as error:
        raise Conflict("What was sent before was lost on the server. Choose the file again.") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise Locked from error
    if os.fstat(stream.fileno()).st_size < offset:
        stream.close()
        raise Conflict("A part of this upload was lost on the server. Choose the file again.")
    stream.truncate(offset)
    stream.seek(offset)
    return stream


async def receive(
    upload_id: str, offset: int, size_bytes: int, body: AsyncIterator[bytes], save: Callable[[int], None]
) -> int:
    """Append the body at `offset`; returns the new offset. What arrived before a cut is kept.

    `save(offset)` is called in a thread, every 16 MiB and at the end, once the bytes are durable.
    Raises Locked, TooLarge (more than announced), DiskFull.
    """
    stream = await run_in_threadpool(_open, upload_id, offset)
    # Taken out while it is being changed, so that a failed request never leaves a half-advanced hash behind.
    known, running = _hashes.pop(upload_id, (-1, None))
    if offset == 0:
        known, running = 0, hashlib.sha256()
    is_hashed = known == offset
    waiting, saved, start = bytearray(), offset, offset

    def write(data: bytes) -> None:
        nonlocal offset
        view = memoryview(data)
        while view:
            written = os.write(stream.fileno(), view)
            if is_hashed:
                running.update(view[:written])
            view = view[written:]
            offset += written

    def keep() -> None:
        nonlocal saved
        os.fsync(stream.fileno())
        save(offset)
        saved = offset

    try:
        with contextlib.suppress(ClientDisconnect):
            async for chunk in body:
                if offset + len(waiting) + len(chunk) > size_bytes:
                    raise TooLarge("More bytes came than were announced. Choose the file again.")
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    data = bytes(waiting)
                    waiting.clear()
                    await run_in_threadpool(write, data)
                if offset - saved >= SAVE_EVERY_BYTES:
                    await run_in_threadpool(keep)
        if waiting:
            await run_in_threadpool(write, bytes(waiting))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull from error
        raise
    finally:
        # Shielded: a cancelled request still records what it wrote.
        await asyncio.shield(run_in_threadpool(_finish, stream, keep, offset > start))
    if is_hashed:
        _hashes[upload_id] = (offset, running)
        while len(_hashes) > HASHES_KEPT:
            _hashes.popitem(last=False)
    return offset


def _finish(stream: IO[bytes], keep: Callable[[], None], is_changed: bool) -> None:
    with stream:
        if is_changed:
            keep()
