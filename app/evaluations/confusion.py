"""Which short answers were taken for which. Kept apart from the report, so that pages need no statistics library."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from app.evaluations.models import CaseResult
from app.evaluations.normalising import normalised


def confusion(rows: Sequence[CaseResult], most: int = 12) -> dict[str, Any]:
    """Which labels were taken for which: a matrix for at most `most` labels, and the most frequent mistakes."""
    names: dict[str, str] = {}
    for row in rows:
        names.setdefault(normalised(row.ideal), row.ideal)
    pairs = Counter((normalised(row.ideal), normalised(row.tuned_answer)) for row in rows if not row.error)
    mistakes = [
        {"ideal": names[wanted], "said": names.get(said, said or "(nothing)"), "count": count}
        for (wanted, said), count in pairs.most_common()
        if wanted != said
    ]
    labels = sorted(names)
    matrix = None
    if 2 <= len(labels) <= most:
        matrix = [[pairs[wanted, said] for said in labels] for wanted in labels]
        others = [sum(count for (w, s), count in pairs.items() if w == wanted and s not in names) for wanted in labels]
        matrix = [[*line, other] for line, other in zip(matrix, others, strict=True)]
    return {"labels": [names[label] for label in labels], "matrix": matrix, "mistakes": mistakes[:10]}
