"""PDF: the text of each page (pdfium, or pypdf where pdfium cannot open the file), under the bookmarks."""

from collections.abc import Iterator
from pathlib import Path

from app.datasets.findings import Problem, Record, Refused
from app.datasets.reading.blocks import Block, records
from app.datasets.reading.context import Context

PAGE_LIMIT = 20_000
SCANNED_BELOW_CHARACTERS = 20
DAMAGED = "This PDF is damaged and cannot be opened. Save it again, or save its text as TXT."
LOCKED = "This PDF is locked with a password. Write the password on its page, then read it again."
WRONG = "The password does not open this PDF. Write it again."


def read_pdf(path: Path, context: Context) -> Iterator[Record | Problem]:
    """One record a page. Pages without text are named as scanned or empty. Raises Refused."""
    number = 1
    for page, text, has_picture, heading in _pages(path, context):
        place = f"page {page}"
        if text is None:
            yield Problem(page, "page.unreadable", place=place)
            continue
        if len("".join(text.split())) < SCANNED_BELOW_CHARACTERS and has_picture:
            yield Problem(page, "page.scanned", text.encode("utf-8", "replace"), place=place)
            continue
        if not text.strip():
            yield Problem(page, "page.empty", is_kept=True, place=place)
            continue
        for record in records(context.name, iter([Block(place, heading, text)]), number):
            yield record
            number += 1


def _pages(path: Path, context: Context) -> Iterator[tuple[int, str | None, bool, str]]:
    """(page number, text or None, whether it shows a picture, bookmarks above it)."""
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(path, password=context.password or None)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise Refused(WRONG if context.password else LOCKED, "file.password") from error
        yield from _pages_by_pypdf(path, context)
        return
    try:
        count = len(document)
        if count > PAGE_LIMIT:
            raise Refused(f"This PDF has over {PAGE_LIMIT:,} pages. Split it, then bring the parts.")
        bookmarks = _bookmarks(document)
        heading = ""
        for index in range(count):
            heading = bookmarks.get(index, heading)
            yield index + 1, *_page(document, index), heading
            context.done_bytes = context.total_bytes * (index + 1) // count
    finally:
        document.close()


def _page(document: "object", index: int) -> tuple[str | None, bool]:
    import pypdfium2 as pdfium
    import pypdfium2.raw as raw

    try:
        page = document[index]  # type: ignore[index]
        text = page.get_textpage().get_text_bounded()
        has_picture = len("".join(text.split())) >= SCANNED_BELOW_CHARACTERS or any(
            True for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3)
        )
    except (pdfium.PdfiumError, ValueError, UnicodeDecodeError):
        return None, False
    page.close()
    return _tidy(text), has_picture


def _tidy(text: str) -> str:
    """One kind of line end; words that were parted at the end of a line are whole again (pdfium marks them U+FFFE)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe\n", "").replace("\ufffe", "").strip()


def _bookmarks(document: "object") -> dict[int, str]:
    """Page index to the path of bookmarks that begin there."""
    import pypdfium2 as pdfium

    from app.datasets.reading.blocks import Headings

    found: dict[int, str] = {}
    headings = Headings()
    try:
        for count, item in enumerate(document.get_toc(max_depth=6)):  # type: ignore[attr-defined]
            if count > 5000:
                break
            destination = item.get_dest()
            headings.enter(item.level + 1, item.get_title())
            if destination is not None and (index := destination.get_index()) is not None:
                found.setdefault(index, headings.path)
    except (pdfium.PdfiumError, ValueError, AttributeError):
        return found
    return found


def _pages_by_pypdf(path: Path, context: Context) -> Iterator[tuple[int, str | None, bool, str]]:
    """What pdfium cannot open may have a broken table of contents that pypdf can rebuild."""
    import pypdf
    from pypdf.errors import PyPdfError

    broken = (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError)
    try:
        reader = pypdf.PdfReader(path, strict=False)
        if reader.is_encrypted and not reader.decrypt(context.password):
            raise Refused(WRONG if context.password else LOCKED, "file.password")
        count = len(reader.pages)
    except (*broken, AssertionError, ArithmeticError, NotImplementedError, ImportError) as error:
        raise Refused(DAMAGED) from error
    if not 0 < count <= PAGE_LIMIT:
        raise Refused(DAMAGED)
    for index in range(count):
        try:
            page = reader.pages[index]
            text: str | None = _tidy(page.extract_text() or "")
            has_picture = "/XObject" in (page.get("/Resources") or {})
        except (*broken, AssertionError, ArithmeticError, NotImplementedError):
            text, has_picture = None, False
        yield index + 1, text, has_picture, ""
        context.done_bytes = context.total_bytes * (index + 1) // count
