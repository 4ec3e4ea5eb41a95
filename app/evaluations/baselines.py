"""What needs no model: the most frequent answer, and the answer of the most similar training row."""

import math
from collections import Counter

import numpy as np
from scipy import sparse

from app.evaluations.normalising import normalised


def majority(answers: list[str]) -> str:
    """The most frequent training answer; the first one among equals."""
    counts = Counter(normalised(answer) for answer in answers)
    if not counts:
        return ""
    wanted = counts.most_common(1)[0][0]
    return next(answer for answer in answers if normalised(answer) == wanted)


class Nearest:
    """Finds the training row whose question shares most words with a new one (TF-IDF and cosine)."""

    def __init__(self, questions: list[str], answers: list[str]) -> None:
        self.answers = answers
        documents = [normalised(question).split() for question in questions]
        seen: Counter[str] = Counter(word for document in documents for word in set(document))
        self._ids = {word: position for position, word in enumerate(seen)}
        total = len(documents)
        self._weights = np.array([math.log((1 + total) / (1 + count)) + 1 for count in seen.values()] or [1.0])
        self._rows = self._matrix(documents)

    def _matrix(self, documents: list[list[str]]) -> sparse.csr_matrix:
        places, columns, values = [0], [], []
        for document in documents:
            counts = Counter(self._ids[word] for word in document if word in self._ids)
            found = np.array([count * self._weights[column] for column, count in counts.items()])
            length = float(np.linalg.norm(found)) or 1.0
            columns += list(counts)
            values += list(found / length)
            places.append(len(columns))
        shape = (len(documents), max(1, len(self._ids)))
        return sparse.csr_matrix((values, columns, places), shape=shape)

    def answers_for(self, questions: list[str]) -> list[str]:
        """For each question the answer of the nearest training row; "" where there is none."""
        if not self.answers:
            return [""] * len(questions)
        wanted = self._matrix([normalised(question).split() for question in questions])
        likeness = (wanted @ self._rows.T).toarray()
        return [self.answers[int(place)] for place in likeness.argmax(axis=1)]
