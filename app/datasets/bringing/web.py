"""One address: fetched with limits of size and time, redirects followed by hand and checked again, resumable."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpcore
import httpx

from app.core import addresses, storage
from app.core.config import get_settings
from app.core.errors import Invalid, TooLarge, Unavailable

REDIRECT_LIMIT = 5
TOTAL_S = 6 * 3600.0
# Packed answers, which were not asked for: one packing that is known, and not much more inside than arrived.
_PACKINGS = ("", "identity", "gzip", "x-gzip", "deflate")
RATIO_LIMIT, RATIO_FROM_BYTES = 100, 64 << 20
_CHUNK = 1 << 18
_TOO_SLOW = "It arrives too slowly. What came is kept; try it again later."
_NO_TEXT = ("image/", "video/", "audio/", "font/")
Tell = Callable[[int, int], None]


def checked_address(text: str) -> str:
    """The address in one spelling, with https where no scheme was written. Raises Invalid."""
    text = text.strip()
    if text and "://" not in text:
        text = f"https://{text}"
    try:
        url = httpx.URL(text)
        parts = urlsplit(text)
        has_user = bool(parts.username or parts.password)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise Invalid(fields={"address": "This is not an address. Write it as https://example.org/page."}) from None
    if url.scheme not in ("http", "https") or not url.host or len(text) > 2000:
        raise Invalid(fields={"address": "This is not an address. Write it as https://example.org/page."})
    if has_user:
        raise Invalid(fields={"address": "Leave name and password out of the address; we do not keep them."})
    return str(url.copy_with(fragment=None))


@contextmanager
def opened(client: httpx.Client, address: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
    """The answer at the end of at most five redirects, its body unread. Raises Invalid or Unavailable in words."""
    for _ in range(REDIRECT_LIMIT + 1):
        request = client.build_request("GET", address, headers=headers)
        try:
            response = client.send(request, stream=True)
        except (addresses.Forbidden, httpx.ConnectError) as error:
            raise _out_of_reach(error, address) from error
        except (httpx.HTTPError, httpcore.ConnectError) as error:
            raise Unavailable(f"{urlsplit(address).hostname} did not answer. Try it again later.") from error
        target = response.headers.get("location", "") if response.is_redirect else ""
        if not target:
            try:
                yield response
            finally:
                response.close()
            return
        response.close()
        address = checked_address(urljoin(address, target))
    raise Unavailable("This address leads from one to the next without end.")


def _out_of_reach(error: Exception, address: str) -> Invalid | Unavailable:
    host = urlsplit(address).hostname
    if addresses.is_refusal(error):
        return Invalid(
            f"{host} is inside a private network, so we do not fetch from it. Whoever runs this server can open "
            "the network with GPT_BUILDER_FETCH_NETWORKS."
        )
    return Unavailable(f"{host} cannot be reached. Check the address and the connection.")


def download(client: httpx.Client, address: str, folder: Path, tell: Tell) -> tuple[Path, str, str]:
    """Fetch the address into `folder`: (path, file name, last address). What arrived before is not fetched again.

    Raises Invalid, Unavailable, TooLarge, DiskFull, and whatever `tell(bytes, bytes in all)` raises.
    """
    part, mark = folder / "body.part", folder / "etag"
    have = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"range": f"bytes={have}-", "if-range": mark.read_text()} if have else {}
    limit = get_settings().upload_limit_bytes
    with opened(client, address, headers) as response:
        if response.status_code == 416 and have:
            return part, _filename(response), str(response.url)
        if response.status_code not in (200, 206):
            raise Unavailable(f"{urlsplit(address).hostname} answered with {response.status_code}. Check the address.")
        kind = response.headers.get("content-type", "").lower()
        if kind.startswith(_NO_TEXT):
            raise Invalid(f"There is no text at this address, but {kind.split(';')[0]}.")
        have = have if response.status_code == 206 else 0
        announced = response.headers.get("content-length", "")
        total = have + int(announced) if announced.isdigit() else 0
        if total > limit:
            raise TooLarge(f"This file is over the limit of {limit / 1e9:.0f} GB.")
        storage.require_space(total - have)
        tag = response.headers.get("etag", "")
        mark.write_text(tag) if tag and not tag.startswith("W/") else mark.unlink(missing_ok=True)
        with part.open("ab" if have else "wb") as out:
            done = have
            for chunk in _patiently(response, limit - have):
                out.write(chunk)
                done += len(chunk)
                tell(done, total)
        if total and done < total:
            raise Unavailable("The connection broke. What arrived is kept; try it again.")
        return part, _filename(response), str(response.url)


def page(client: httpx.Client, address: str, limit: int) -> tuple[int, str, bytes, str]:
    """(status, content type, body, last address) of something small. Raises as `opened`, and TooLarge."""
    with opened(client, address) as response:
        body = b"".join(_patiently(response, limit))
        return response.status_code, response.headers.get("content-type", "").lower(), body, str(response.url)


def _patiently(response: httpx.Response, limit: int) -> Iterator[bytes]:
    began, seen = time.monotonic(), 0
    if response.headers.get("content-encoding", "").strip().lower() not in _PACKINGS:
        raise Unavailable("What is at this address is packed in a way that we did not ask for. Fetch it yourself.")
    try:
        for chunk in response.iter_bytes(_CHUNK):
            seen += len(chunk)
            if seen > limit:
                raise TooLarge("What is at this address is over the limit.")
            if seen > RATIO_FROM_BYTES and seen > RATIO_LIMIT * response.num_bytes_downloaded:
                raise TooLarge("What is at this address unpacks to more than a hundred times its size.")
            if time.monotonic() - began > TOTAL_S:
                raise Unavailable(_TOO_SLOW)
            yield chunk
    except httpx.ReadTimeout as error:
        raise Unavailable(_TOO_SLOW) from error
    except httpx.HTTPError as error:
        raise Unavailable("The connection broke. What arrived is kept; try it again.") from error


def _filename(response: httpx.Response) -> str:
    """The last part of the path. The page's own header is not asked: it could name anything."""
    url = urlsplit(str(response.url))
    name = unquote(url.path.rstrip("/").rsplit("/", 1)[-1]) or (url.hostname or "page")
    if response.headers.get("content-type", "").lower().startswith("text/html") and "." not in name:
        name += ".html"
    return name
