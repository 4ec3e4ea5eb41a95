"""A web site: pages below an address, found by sitemap and links, as robots.txt allows, one after the other.

Links are found by Python's own parser (no native code outside the limited child); pages are kept as they were.
"""

import gzip
import html
import io
import re
import threading
import zipfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import httpx
import orjson

from app.core.config import get_settings
from app.core.errors import AppError, Invalid, Unavailable
from app.datasets.bringing import web

AGENT = "GPT-Builder"
PAGE_BYTES, SITE_BYTES = 5 * 2**20, 500 * 2**20
ROBOTS_BYTES, SITEMAP_BYTES = 500_000, 50 * 2**20
SITEMAP_LIMIT, QUEUE_LIMIT, LINKS_PER_PAGE = 20, 20_000, 2000
SKIPPED_SHOWN = 50
LONGEST_DELAY_S = 10.0
_LOCATION = re.compile(rb"<loc>\s*(?:<!\[CDATA\[)?\s*([^<\]]{1,2000}?)\s*(?:\]\]>)?\s*</loc>")
_OTHER_FILES = re.compile(
    r"\.(png|jpe?g|gif|svg|webp|ico|css|js|json|xml|zip|gz|mp[34]|webm|woff2?|ttf|exe|dmg)$", re.I
)


@dataclass
class Site:
    """What was done: pages kept (address, file), pages left out (address, reason), bytes so far."""

    kept: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    size_bytes: int = 0


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "a" and (href := values.get("href")) and "nofollow" not in (values.get("rel") or ""):
            self.found.append(href)


def links(body: bytes, address: str) -> list[str]:
    """Addresses that a page links to, without fragments."""
    parser = _Links()
    parser.feed(body.decode("utf-8", "replace"))
    found = []
    for href in parser.found[:LINKS_PER_PAGE]:
        try:
            found.append(urljoin(address, href).split("#")[0])
        except ValueError:
            continue
    return found


def robots_of(client: httpx.Client, address: str) -> RobotFileParser:
    """The rules of a site (RFC 9309): a missing file allows everything, one that cannot be read nothing."""
    robots = RobotFileParser()
    status, _kind, body, _last = web.page(client, urljoin(address, "/robots.txt"), ROBOTS_BYTES)
    if status >= 500:
        raise Unavailable("This site cannot say what may be read (robots.txt). Try it again later.")
    robots.parse(body.decode("utf-8", "replace").splitlines() if status < 400 else [])
    return robots


def sitemap(client: httpx.Client, address: str, robots: RobotFileParser) -> list[str]:
    """Addresses that the site lists itself; sitemaps may list sitemaps."""
    waiting = deque(robots.site_maps() or [urljoin(address, "/sitemap.xml")])
    found: list[str] = []
    for _ in range(SITEMAP_LIMIT):
        if not waiting or len(found) >= QUEUE_LIMIT:
            break
        try:
            status, _kind, body, _last = web.page(
                client, web.checked_address(urljoin(address, waiting.popleft())), SITEMAP_BYTES
            )
            if body.startswith(b"\x1f\x8b"):
                body = gzip.GzipFile(fileobj=io.BytesIO(body)).read(SITEMAP_BYTES)
        except (AppError, OSError, EOFError):
            continue
        listed = [html.unescape(m.decode("utf-8", "replace")) for m in _LOCATION.findall(body)] if status == 200 else []
        (waiting if b"<sitemapindex" in body[:2000] else found).extend(listed)
    return found[:QUEUE_LIMIT]


class Crawl:
    """Goes through a site into `folder`; begun again, it goes on behind the last page that was kept."""

    def __init__(self, client: httpx.Client, start: str, folder: Path, page_limit: int) -> None:
        self.client, self.start, self.folder, self.page_limit = client, start, folder, page_limit
        self.site = Site()
        self._log = folder / "pages.jsonl"
        url = urlsplit(start)
        self._root = (url.scheme, url.netloc)
        self._below = url.path[: url.path.rfind("/") + 1] or "/"
        self._seen: set[str] = set()
        self._queue: deque[str] = deque()

    def run(self, tell: Callable[[int, int], None]) -> Site:
        """`tell(pages done, pages in all)` before every page. Raises Invalid when not one page was found."""
        robots = robots_of(self.client, self.start)
        self._take_up()
        for address in [self.start, *sitemap(self.client, self.start, robots)]:
            self._wait_for(address)
        delay = min(float(robots.crawl_delay(AGENT) or 0), LONGEST_DELAY_S) or get_settings().fetch_delay_s
        pause = threading.Event()
        while self._queue and len(self.site.kept) < self.page_limit and self.site.size_bytes < SITE_BYTES:
            tell(len(self.site.kept), min(self.page_limit, len(self.site.kept) + len(self._queue)))
            address = self._queue.popleft()
            if not robots.can_fetch(AGENT, address):
                self._skip(address, "robots.txt does not allow it")
                continue
            self._visit(address)
            pause.wait(delay)
        if not self.site.kept:
            reason = self.site.skipped[0][1] if self.site.skipped else "nothing is linked"
            raise Invalid(f"Not one page could be read from this site: {reason}.")
        return self.site

    def _wait_for(self, address: str) -> None:
        try:
            url = urlsplit(address)
        except ValueError:
            return
        inside = (url.scheme, url.netloc) == self._root and url.path.startswith(self._below)
        is_wanted = address == self.start or (inside and not _OTHER_FILES.search(url.path))
        if is_wanted and address not in self._seen and len(self._seen) < QUEUE_LIMIT:
            self._seen.add(address)
            self._queue.append(address)

    def _visit(self, address: str) -> None:
        try:
            status, kind, body, last = web.page(self.client, address, PAGE_BYTES)
        except AppError as error:
            self._skip(address, error.sentence)
            return
        if status != 200:
            self._skip(address, f"the answer was {status}")
        elif "html" not in kind:
            self._skip(address, f"it is {kind.split(';')[0] or 'of no known kind'}, not a web page")
        elif urlsplit(last).netloc != self._root[1]:
            self._skip(address, "it leads to another site")
        else:
            self._keep(address, body)
            for link in links(body, last):
                self._wait_for(link)

    def _keep(self, address: str, body: bytes) -> None:
        name = f"{len(self.site.kept):05d}.html"
        (self.folder / name).write_bytes(body)
        with self._log.open("ab") as log:
            log.write(orjson.dumps([address, name]) + b"\n")
        self.site.kept.append((address, name))
        self.site.size_bytes += len(body)

    def _skip(self, address: str, reason: str) -> None:
        self.site.skipped.append((address, reason))

    def _take_up(self) -> None:
        """Pages of an earlier attempt, and what they link to."""
        if not self._log.exists():
            return
        for line in self._log.read_bytes().splitlines():
            try:
                address, name = orjson.loads(line)
                body = (self.folder / name).read_bytes()
            except (orjson.JSONDecodeError, ValueError, OSError):
                continue
            self._seen.add(address)
            self.site.kept.append((address, name))
            self.site.size_bytes += len(body)
            for link in links(body, address):
                self._wait_for(link)


def packed(site: Site, folder: Path) -> Path:
    """The pages as one archive, each under the path of its address."""
    target = folder / "site.zip"
    used: set[str] = set()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for address, name in site.kept:
            archive.writestr(_member(address, used), (folder / name).read_bytes())
    return target


def _member(address: str, used: set[str]) -> str:
    url = urlsplit(address)
    path = unquote(url.path) + (f"?{url.query}" if url.query else "")
    parts = [p for p in PurePosixPath(path.replace("\\", "/").replace("\0", "")).parts if p not in ("/", "..", ".")]
    base = "/".join([url.netloc.replace(":", "_"), *parts])[:400]
    base = base if base.lower().endswith((".html", ".htm")) else f"{base.rstrip('/')}/index.html"
    name, number = base, 2
    while name in used:
        name, number = f"{base} {number}", number + 1
    used.add(name)
    return name
