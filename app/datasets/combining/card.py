"""The data card of a version, in Markdown: what is in it, where it comes from, what was done, what is not known."""

from collections import Counter
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.numbers import in_full, number, percent
from app.datasets import versions
from app.datasets.browsing.languages import language_of
from app.datasets.clean_shown import code_words
from app.datasets.cleaning import STEPS
from app.datasets.combining import made
from app.datasets.models import DatasetVersion, SourceFile
from app.datasets.tables import count, page, parts

SAMPLED_ROWS, PLACES = 500, 10
PERSONAL = "personal"


def markdown(session: Session, project: str, version: DatasetVersion) -> str:
    """The card. Raises NotFound before the version is built, Unavailable when its files cannot be reached."""
    manifest = versions.manifest_of(version)
    files = made.files_of(session, version)
    ids = [file["file_id"] for file in files]
    ledger = {f.id: f for f in session.scalars(select(SourceFile).where(SourceFile.id.in_(ids)))} if ids else {}
    steps = made.steps_of(session, version)
    languages = _languages(version)
    blocks = [
        [f"# {_plain(project)}, version {version.number}"],
        _content(manifest, version, languages),
        ["## Sources", "", *_sources(files, ledger)],
        ["## How it was made", "", *_making(session, version, manifest, steps)],
        ["## Personal data", "", *_personal(steps)],
        ["## Known gaps", "", *_gaps(manifest, files, ledger, languages)],
    ]
    return "\n".join("\n".join([*block, ""]) for block in blocks)


def _plain(text: str) -> str:
    """A text of the person's as one line that is not read as Markdown."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!~" else c for c in flat)


def _content(manifest: dict[str, Any], version: DatasetVersion, languages: Counter[str]) -> list[str]:
    counts, statistics = manifest["counts"], manifest["statistics"]
    what = "conversations" if manifest["kind"] == "chat" else "plain text"
    lines = [
        "## What is in it", "",
        f"- {number(counts['rows'])} rows of {what}, {number(statistics['words'])} words",
        *(f"- {name}: {number(n)} rows" for name, n in counts["splits"].items()),
        f"- frozen {in_full(version.created_at)}; fingerprint (SHA-256 of the manifest) `{version.manifest_sha256}`",
    ]  # fmt: skip
    if statistics["distinct_labels"] > 1:
        shown = ", ".join(f"{_plain(label)} ({number(n)})" for label, n in statistics["labels"][:12])
        lines.append(f"- {number(statistics['distinct_labels'])} labels: {shown}")
    if languages:
        total = languages.total()
        told = ", ".join(f"{code or 'not certain'} {percent(n / total)}" for code, n in languages.most_common(8))
        lines.append(f"- languages, by a sample of {number(total)} rows: {told}")
    return lines


def _sources(files: list[dict[str, Any]], ledger: dict[str, SourceFile]) -> list[str]:
    lines = ["| file | rows | origin | licence | consent | obtained |", "|---|---|---|---|---|---|"]
    for file in files:
        known = ledger.get(file["file_id"])
        cells = [
            _plain(file["filename"]),
            number(file["rows"]),
            _plain(" ".join(filter(None, (known.origin, known.origin_url)))) if known else "no longer known",
            _plain(known.licence) if known and known.licence else "not stated",
            _plain(known.consent) if known and known.consent else "not stated",
            known.obtained_on.isoformat() if known and known.obtained_on else "not stated",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rows_sentence(counts: dict[str, Any]) -> str:
    """How many rows came in, were left out, and came to them."""
    split = counts.get("made", 0)
    left = counts["rows_in"] + split - counts["rows"] + counts.get("repeated", 0)
    more = f", {number(split)} more by splitting long ones" if split else ""
    return f"{number(counts['rows_in'])} rows in, {number(left)} left out{more}"


def _making(
    session: Session, version: DatasetVersion, manifest: dict[str, Any], steps: list[dict[str, Any]]
) -> list[str]:
    counts = manifest["counts"]
    lines = [f"- {what}: {_plain(value)}" for what, value in made.facts(session, version)]
    lines += [f"- {STEPS[s['name']].title}, `{s['name']}@{s['version']}`" for s in steps if s["name"] in STEPS]
    if not steps:
        lines.append("- no cleaning step was applied")
    lines.append(f"- {rows_sentence(counts)}")
    lines += [
        f"  - {code_words(code)}: {number(n)}" for code, n in {**counts["mapping_codes"], **counts["codes"]}.items()
    ]
    report = manifest["split_report"]
    lines.append(f"- rows with the same question or content on two sides of the split: {number(report['leaks'])}")
    return lines


def _personal(steps: list[dict[str, Any]]) -> list[str]:
    step = next((s for s in steps if s["name"] == PERSONAL), None)
    if step is None:
        return [
            "The rows were not searched for personal data. They may contain names, addresses and numbers of people."
        ]
    chosen = orjson.dumps(step["params"]).decode()
    return [
        "Rows were searched for e-mail addresses, telephone numbers, card and account numbers, network addresses and "
        "keys by patterns and check digits. Names and postal addresses are not found by this.",
        "", f"What was done with them: `{chosen}`",
    ]  # fmt: skip


def _gaps(
    manifest: dict[str, Any], files: list[dict[str, Any]], ledger: dict[str, SourceFile], languages: Counter[str]
) -> list[str]:
    lines = []
    unlicensed = [f["filename"] for f in files if not getattr(ledger.get(f["file_id"]), "licence", "")]
    if unlicensed:
        lines.append(f"- no licence is stated for {', '.join(map(_plain, unlicensed[:5]))}")
    if len(files) == 1:
        lines.append("- everything comes from one source")
    if languages and languages.most_common(1)[0][1] >= 0.95 * languages.total():
        lines.append("- nearly all rows are in one language; others are not learned")
    labels = manifest["statistics"]["labels"]
    if len(labels) > 1 and labels[0][1] > 10 * labels[-1][1]:
        lines.append(f"- the most frequent label has over ten times the rows of “{_plain(labels[-1][0])}”")
    if not manifest["counts"]["splits"]["test"]:
        lines.append("- there are no test rows, so it cannot be examined on rows that it did not see")
    lines.append("- who speaks in these rows, and about whom, was not examined")
    return lines


def _languages(version: DatasetVersion) -> Counter[str]:
    """Language codes of up to 500 rows from ten places."""
    paths = parts(versions.folder(version), "data-")
    total, each = count(paths), SAMPLED_ROWS // PLACES
    starts = range(0, total, max(each, total // PLACES))
    rows = [row for start in list(starts)[:PLACES] for row in page(paths, start, each)]
    return Counter(language_of(_read(row)) for row in rows)


def _read(row: dict[str, Any]) -> str:
    return row["text"] or "\n".join(m["content"] for m in row["messages"] if m["role"] != "system")
