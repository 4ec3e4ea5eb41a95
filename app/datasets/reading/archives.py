"""ZIP archives: every member is read by its own reader; its path is kept as the column `source`."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from app.datasets.findings import Problem, Record, Refused
from app.datasets.reading.context import Context
from app.datasets.reading.packages import BROKEN, open_package

SOURCE = "source"
# What computers leave in archives without anybody's wish.
_LITTER = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")
ReadMember = Callable[[Path, str, Context], Iterator[Record | Problem]]


def read_archive(path: Path, context: Context, read_member: ReadMember) -> Iterator[Record | Problem]:
    """Records of all members in the order of the archive; rows are numbered on. Raises Refused."""
    before, read = 0, 0
    with open_package(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and not any(x in m.filename for x in _LITTER)]
        if not members:
            raise Refused("There is no file in this ZIP archive.")
        if any(member.flag_bits & 1 for member in members) and not context.password:
            raise Refused(
                "This archive is locked with a password. Write the password on its page, then read it again.",
                "file.password",
            )
        for index, member in enumerate(members):
            last = before
            for found in _member(archive, member, index, context, read_member):
                found = replace(found, row=before + found.row, place=_place(member.filename, found))
                if isinstance(found, Record) and SOURCE not in found.values:
                    found = replace(found, values={SOURCE: member.filename, **found.values})
                last = max(last, found.row)
                yield found
            before = last
            read += member.compress_size
            context.done_bytes = min(context.total_bytes, read)


def _place(member: str, found: Record | Problem) -> str:
    return f"{member}, {found.place or f'line {found.row}'}"


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, index: int, context: Context, read_member: ReadMember
) -> Iterator[Record | Problem]:
    target = context.scratch / f"member-{index}"
    target.unlink(missing_ok=True)
    try:
        try:
            with archive.open(member, pwd=context.password.encode() or None) as source, target.open("wb") as out:
                shutil.copyfileobj(_Bounded(source, member.file_size), out, 1 << 20)
        except BROKEN as error:
            if "password" in str(error).lower():
                raise Refused("The password does not open this archive. Write it again.", "file.password") from error
            yield Problem(1, "member.refused", note="it is damaged")
            return
        inner = Context(member.filename, context.scratch / f"inner-{index}")
        inner.scratch.mkdir()
        try:
            yield from read_member(target, member.filename, inner)
        except Refused as refusal:
            yield Problem(1, "member.refused", note=refusal.sentence[:300])
        finally:
            shutil.rmtree(inner.scratch, ignore_errors=True)
    finally:
        target.unlink(missing_ok=True)


class _Bounded:
    """A member that may not unpack to more than the archive says."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source, self._left = source, size

    def read(self, count: int = -1, /) -> bytes:
        data = self._source.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("longer than announced")
        return data
