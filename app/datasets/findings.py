"""What can be wrong with a record: every reason code, its sentence and the fixes a person may choose."""

from dataclasses import dataclass
from typing import Any

RAW_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read: `row` is its line (text files) or its number (tables), from 1.

    `place` says where that is in files of several parts: a page, a sheet, a member of an archive.
    """

    row: int
    values: dict[str, Any]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at `row`. `is_kept` false: the record was set aside, its first 4 KiB are in `raw`."""

    row: int
    code: str
    raw: bytes = b""
    note: str = ""
    is_kept: bool = False
    place: str = ""


@dataclass(frozen=True, slots=True)
class Fix:
    """A choice for one reason code: reading option `name` becomes `value`."""

    label: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason code in words. `title` is about all its records, `advice` what to do."""

    title: str
    advice: str
    fixes: tuple[Fix, ...] = ()


REASONS: dict[str, Reason] = {
    "decode.fallback": Reason(
        "Lines in another encoding",
        "They were read as Windows-1252, as the rest of the file is UTF-8. Look whether the accents are right.",
        (Fix("Keep them", "wrong_encoding", "repair"), Fix("Leave them out", "wrong_encoding", "skip")),
    ),
    "decode.replaced": Reason(
        "Characters that no encoding explains",
        "They were replaced by �. Save the file as UTF-8 and bring it again, or leave these lines out.",
        (Fix("Keep them", "wrong_encoding", "repair"), Fix("Leave them out", "wrong_encoding", "skip")),
    ),
    "row.short": Reason(
        "Rows with too few columns",
        "The missing cells at the end count as empty.",
        (Fix("Keep them", "short_rows", "pad"), Fix("Leave them out", "short_rows", "skip")),
    ),
    "row.long": Reason(
        "Rows with too many columns",
        "Often a comma in a text without quotes. Choose what becomes of the extra cells.",
        (
            Fix("Join them to the last column", "long_rows", "join"),
            Fix("Cut them off", "long_rows", "cut"),
            Fix("Leave the rows out", "long_rows", "skip"),
        ),
    ),
    "quote.unclosed": Reason(
        "A quote that is never closed",
        "The line was set aside so that it does not swallow what follows.",
        (Fix("Read the quote as a letter", "open_quotes", "repair"), Fix("Leave them out", "open_quotes", "skip")),
    ),
    "json.invalid": Reason(
        "Lines that are not JSON",
        "Usual causes: single quotes, a comma at the end, a line cut in half.",
        (Fix("Repair what can be repaired", "bad_json", "repair"), Fix("Leave them out", "bad_json", "skip")),
    ),
    "json.repaired": Reason(
        "JSON lines that were repaired",
        "Single quotes or extra commas were read as they were meant.",
        (Fix("Keep them", "bad_json", "repair"), Fix("Leave them out", "bad_json", "skip")),
    ),
    "json.not_object": Reason(
        "JSON values that are not rows",
        "A row is an object with named values, such as {“question”: …}. These are lists, texts or numbers.",
    ),
    "json.depth": Reason("Rows nested too deep", "More than 64 levels. Flatten them before you bring them."),
    "json.unclosed": Reason(
        "The file ends in the middle",
        "The list is never closed, so the end may be missing. What came before it was read.",
    ),
    "json.doubled_key": Reason(
        "Rows with a key that stands twice",
        "The first value keeps the name and the later ones were numbered, such as “name 2”, so nothing is lost. Other "
        "programs keep only the last.",
        (
            Fix("Keep them all", "doubled_keys", "number"),
            Fix("Keep only the last", "doubled_keys", "last"),
            Fix("Leave the rows out", "doubled_keys", "skip"),
        ),
    ),
    "json.big_number": Reason(
        "Whole numbers over 64 bits",
        "As numbers they would be rounded, so their digits are kept as text.",
    ),
    "line.empty": Reason("Empty lines", "They carry nothing and were passed over."),
    "line.too_long": Reason("Lines over 32 MB", "Split them before you bring the file."),
    "columns.too_many": Reason(
        "Rows with ever new columns", "A file may have 512 different columns; these rows have further ones."
    ),
    "header.is_row": Reason(
        "The first line looks like a row",
        "Its cells were taken as the names of the columns. If they are a question and an answer, say so.",
        (Fix("It is a row", "has_header", "false"), Fix("It has the names", "has_header", "true")),
    ),
    "header.doubled": Reason("Columns of the same name", "The later ones were numbered, such as “name 2”."),
    "key.unknown": Reason(
        "Rows with a mistyped column",
        "The column looks like another one that is missing in the same rows.",
        (
            Fix("Use it as the column it looks like", "mistyped_columns", "map"),
            Fix("Leave it as it is", "mistyped_columns", "keep"),
        ),
    ),
    "page.scanned": Reason(
        "Pages that are pictures",
        "They hold no text, only a scan. Run text recognition (OCR) on the file, then bring it again.",
    ),
    "page.unreadable": Reason("Pages that cannot be read", "They are damaged. The other pages were read."),
    "page.empty": Reason("Empty pages", "There is nothing on them."),
    "member.refused": Reason(
        "Files of the archive that were not read", "The note says why. Bring them on their own if they matter."
    ),
    "member.packed": Reason("Archives inside the archive", "Only one level is opened. Unpack them, then bring them."),
    "sheet.empty": Reason("Empty sheets", "They have no rows below their column names."),
    "cell.error": Reason("Cells with a formula error", "Cells such as #REF! are read as empty."),
    "cell.formula": Reason(
        "Formulas without a result",
        "The file keeps no result for them, so they are read as empty. Open it in your office program, save it there, "
        "then bring it again.",
    ),
    "chat.line": Reason("Lines that are no message", "They have neither a time nor a speaker in front of them."),
    "chat.notice": Reason("Notices of the chat", "Somebody joined, left or changed a name: nothing was said."),
    "value.unreadable": Reason("Values that are no text", "They hold bytes or dates that cannot be shown."),
    "turn.no_assistant": Reason("Conversations without an answer", "There is nothing to learn from in them."),
    "turn.empty": Reason("Conversations with an empty turn", "The empty turns were left out."),
    "turn.same_role": Reason("Two turns of one speaker in a row", "They were joined into one turn."),
    "turn.starts_with_assistant": Reason(
        "Conversations that begin with the answer", "The first turn is kept as context and is not learned."
    ),
    "role.unknown": Reason("Speakers we do not know", "Say on the mapping screen who is who."),
    "thread.no_parent": Reason(
        "Messages that answer one that is not there", "Their conversation is not whole, so they were set aside."
    ),
    "thread.unanswered": Reason(
        "Conversations that end without an answer", "Nobody answered the last question in them; it was left out."
    ),
    "turn.part": Reason(
        "Turns with pictures, sound or files", "Their text is kept; what is no text was left out of it."
    ),
    "pair.equal": Reason(
        "Pairs whose two answers are the same", "There is nothing to compare in them, so they were left out."
    ),
    "rating.unknown": Reason(
        "Ratings that say neither good nor bad", "Write true or false, 1 or 0, good or bad in that column."
    ),
    "map.empty": Reason("Rows without the mapped columns", "Neither question nor answer was found in them."),
    "map.no_prompt": Reason("Rows without a question", "Only the answer was found in them."),
    "map.no_answer": Reason("Rows without an answer", "There is nothing to learn from in them."),
}


class Refused(Exception):
    """A file that cannot be brought at all. `sentence` says what it is and what to do."""

    def __init__(self, sentence: str, code: str = "file.refused") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
