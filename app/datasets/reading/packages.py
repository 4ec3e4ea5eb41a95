"""ZIP containers, looked at before anything is unpacked: members, sizes, paths, links, locks, entity tricks."""

import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from app.datasets.findings import Refused

MEMBER_LIMIT = 2000
UNPACKED_LIMIT_BYTES = 4 * 2**30
RATIO_LIMIT = 100
# Below this size the ratio says nothing: a small file of spaces packs better than any bomb.
RATIO_FROM_BYTES = 64 * 2**20
BROKEN = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError,
)  # fmt: skip
_ENTITY = re.compile(rb"<\0?!\0?E\0?N\0?T\0?I\0?T\0?Y|<\0?!\0?D\0?O\0?C\0?T\0?Y\0?P\0?E", re.IGNORECASE)
_CHUNK = 1 << 20


def open_package(path: Path) -> zipfile.ZipFile:
    """The archive at `path`, checked. The caller closes it. Raises Refused."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise Refused("This ZIP archive is damaged and cannot be opened. Pack it again.") from error
    try:
        _check(archive, path.stat().st_size)
    except BaseException:
        archive.close()
        raise
    return archive


def _check(archive: zipfile.ZipFile, packed_bytes: int) -> None:
    members = archive.infolist()
    if not members:
        raise Refused("This is an empty ZIP archive.")
    if len(members) > MEMBER_LIMIT:
        raise Refused("This archive holds over 2,000 files. Split it, then bring the parts.", "zip.members")
    unpacked = sum(member.file_size for member in members)
    if unpacked > UNPACKED_LIMIT_BYTES:
        raise Refused("This archive unpacks to over 4 GB. Split it, then bring the parts.", "zip.size")
    if unpacked > RATIO_FROM_BYTES and unpacked > RATIO_LIMIT * packed_bytes:
        raise Refused(
            "This archive unpacks to more than a hundred times its size, as archives made to break readers do. "
            "Unpack it yourself, then bring the files.",
            "zip.ratio",
        )
    for member in members:
        name = member.filename.replace("\\", "/")
        mode = member.external_attr >> 16
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
            raise Refused("A file of this archive points outside of it. Pack it again from one folder.", "zip.path")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused("This archive holds links or devices. Pack the files themselves.", "zip.link")


def member_bytes(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """One member. Raises Refused when it is missing, damaged, locked or over `limit` bytes."""
    try:
        with archive.open(name) as stream:
            content = stream.read(limit + 1)
    except BROKEN as error:
        raise Refused("This file is damaged: a part of it cannot be unpacked. Save it again.") from error
    if len(content) > limit:
        raise Refused("A part of this file is larger than any document needs. Split it, then bring the parts.")
    return content


def refuse_entities(archive: zipfile.ZipFile) -> None:
    """Office files never define entities: those that do are made to break readers or to read other files.

    Raises Refused, also when a member unpacks to more than it says.
    """
    for member in archive.infolist():
        if not member.filename.lower().endswith((".xml", ".rels", ".vml")):
            continue
        last, seen = b"", 0
        try:
            with archive.open(member) as stream:
                while chunk := stream.read(_CHUNK):
                    seen += len(chunk)
                    if _ENTITY.search(last + chunk):
                        raise Refused(
                            "This file defines entities, as files made to break readers do. "
                            "Open it in your office program and save it again.",
                            "xml.entity",
                        )
                    last = chunk[-40:]
        except BROKEN as error:
            raise Refused("This file is damaged: a part of it cannot be unpacked. Save it again.") from error
