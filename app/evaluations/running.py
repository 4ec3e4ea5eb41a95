"""The work of an evaluation: ask everybody the same questions, score, record row by row, sum up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.core.db import reading
from app.core.errors import Invalid
from app.core.work import Cancelled, Lease
from app.evaluations import baselines, cases, own, report, scorers
from app.evaluations.cases import Case
from app.evaluations.models import CaseResult, Evaluation
from app.evaluations.outside import Answer, Outside
from app.evaluations.plan import target_of
from app.inference import client
from app.inference.patience import patiently
from app.inference.targets import Target
from app.inference.told import Told

AT_ONCE = 6
_BATCH = 6
_ASK_AGAIN_S = 1.0  # between two looks whether somebody has cancelled, while a model waits for memory


def run(lease: Lease, evaluation: Evaluation) -> None:
    """Answer and score what is not recorded yet, then write the summary. Raises Cancelled and LostLease as they come.

    What an interrupted attempt recorded is kept and not asked again.
    """
    if evaluation.version_id is None:
        raise Invalid("The dataset version of this evaluation was deleted.")
    tuned = target_of(evaluation.plan["tuned"])
    base = target_of(evaluation.plan["base"]) if evaluation.plan.get("base") else None
    external = evaluation.plan.get("external")
    lease.progress(0, 0, phase="reading")
    chosen, split = cases.load(evaluation.version_id, evaluation.row_limit)
    questions, answers = cases.training_pairs(evaluation.version_id)
    kind = cases.kind_of(chosen, answers)
    # A model of plain text has no turns, so it cannot be asked questions from a chat.
    chosen += own.cases(evaluation.plan.get("own", [])) if kind != "text" else []
    with reading() as session:
        known = set(session.scalars(select(CaseResult.position).where(CaseResult.evaluation_id == evaluation.id)))
    plain = _plain_answers(kind, chosen, questions, answers)
    longest = max(len(case.ideal) for case in chosen)
    limit = int(min(256, max(16, longest / 2.5 + 8)))
    waiting = [position for position in range(len(chosen)) if position not in known]
    outside = Outside(external, lambda: not lease.is_cancelled) if external and kind != "text" else None
    lease.progress(len(known), len(chosen), phase="asking")
    done, told = len(known), Told(lease)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="evaluate") as pool:
        for positions in _batches(waiting):
            rows = list(
                pool.map(
                    lambda at: _row(evaluation.id, at, chosen[at], kind, tuned, base, plain[at], limit, outside, told),
                    positions,
                )
            )
            lease.is_waiting = False
            if outside is not None and lease.is_cancelled:
                raise Cancelled  # what was broken off elsewhere is asked again when it goes on
            done += len(rows)
            with lease.write(done=done, total=len(chosen), phase="asking") as session:
                session.add_all(rows)
            lease.progress(done, len(chosen))
    lease.progress(done, len(chosen), phase="summing up")
    with lease.write() as session:
        row = session.get_one(Evaluation, evaluation.id)
        results = recorded(session, evaluation.id)
        row.kind, row.summary = kind, report.summary(kind, split, results, has_base=base is not None, external=external)


def recorded(session: Session, evaluation_id: str) -> list[CaseResult]:
    """All scored rows of an evaluation, in order."""
    query = select(CaseResult).where(CaseResult.evaluation_id == evaluation_id).order_by(CaseResult.position)
    return list(session.scalars(query))


def _batches(positions: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(positions), _BATCH):
        yield positions[start : start + _BATCH]


def _plain_answers(kind: str, chosen: list[Case], questions: list[str], answers: list[str]) -> list[dict[str, str]]:
    """What the systems without a model answer, per case."""
    if kind == "text" or not answers:
        return [{} for _ in chosen]
    nearest = baselines.Nearest(questions, answers).answers_for([case.prompt for case in chosen])
    found = [{"nearest": answer} for answer in nearest]
    if kind == "labels":
        usual = baselines.majority(answers)
        found = [{**one, "majority": usual} for one in found]
    return found


def _row(
    evaluation_id: str,
    position: int,
    case: Case,
    kind: str,
    tuned: Target,
    base: Target | None,
    plain: dict[str, str],
    limit: int,
    outside: Outside | None,
    told: Told,
) -> CaseResult:
    """One case asked of everybody. A refusal of the model server becomes the row's error; the external model is not
    asked then, since nothing could be compared."""
    scores: dict[str, dict[str, float]] = {name: scorers.scores(answer, case.ideal) for name, answer in plain.items()}
    said = {"tuned": "", "base": ""}
    error = ""
    messages = _with_system(case.messages, tuned.system_prompt)
    for name, target in (("tuned", tuned), ("base", base)):
        if target is None:
            continue
        try:
            scores[name] = _likelihood(target, case, messages, kind, told)
            if kind != "text":
                said[name] = _ask(target, messages, limit, told)
                scores[name] |= scorers.scores(said[name], case.ideal)
        except Invalid as refused:
            error = refused.sentence
    elsewhere = outside.answer(messages, limit) if outside is not None and not error else Answer()
    if elsewhere.counts is not None:
        scores["external"] = elsewhere.counts | scorers.scores(elsewhere.text, case.ideal)
    return CaseResult(
        evaluation_id=evaluation_id,
        position=position,
        rid=case.rid,
        prompt="\n".join(message.content for message in case.messages)[-4000:],
        ideal=case.ideal,
        base_answer=said["base"],
        tuned_answer=said["tuned"],
        external_answer=elsewhere.text,
        scores=scores,
        error=error,
        external_error=elsewhere.problem,
    )


def _with_system(messages: list[Message], system_prompt: str) -> list[Message]:
    if not system_prompt or (messages and messages[0].role == "system"):
        return messages
    return [Message(role="system", content=system_prompt), *messages]


def _ask(target: Target, messages: list[Message], limit: int, told: Told) -> str:
    sampling = Sampling(temperature=0, max_tokens=limit)
    request = client.request_for(target, sampling, messages=messages)
    return patiently(lambda heard: client.answer(request, heard), told).text.strip()


def _likelihood(target: Target, case: Case, messages: list[Message], kind: str, told: Told) -> dict[str, float]:
    """Negative log-likelihood of the ideal answer in nats, and its tokens."""
    prompt: dict[str, Any] = {"prompt": ""} if kind == "text" else {"messages": messages}
    found = patiently(lambda _: client.score(target, [case.ideal], patience_s=_ASK_AGAIN_S, **prompt), told)[0]
    return {"nll": -found["log_probability"], "tokens": found["tokens"]}
