"""Pages of a version beside its rows: make another of it, compare it, its data card."""

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field

from app.accounts.access import ActorDep
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormBase, FormValues, checked
from app.core.markdown import render as to_html
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import shown, versions
from app.datasets.combining import card, differences, service
from app.datasets.combining.contract import Balance, Operation
from app.datasets.forms import listed
from app.projects import service as projects

router = APIRouter()


class CombineForm(FormBase):
    """What is made of a version. `weights` go with `others`, one each."""

    operation: Operation
    others: list[str] = Field(default_factory=list, max_length=9)
    weights: list[float] = Field(default_factory=list, max_length=200)
    of: list[str] = Field(default_factory=list, max_length=200)
    weight: float = Field(1, gt=0, le=1000)
    rows: int | None = Field(None, ge=1, le=10**9)
    by: Balance = "label"
    at_most: int | None = Field(None, ge=1, le=10**9)
    is_repeated: bool = False
    seed: int = Field(1, ge=0, le=2**31 - 1)


@router.post("/versions/{version_id}/combinations")
def combine(session: SessionDep, actor: ActorDep, version_id: str, values: FormValues) -> Response:
    # An empty number means none: as many rows as the rarest has.
    given = {name: value for name, value in values.items() if value != "" or name not in ("rows", "at_most")}
    form, errors = checked(CombineForm, listed(given, "others", "weights", "of"))
    if form is None:
        names = {
            "rows": _("Rows"), "at_most": _("Rows of each, at most"), "seed": _("Seed"), "weight": _("Weight"),
            "weights": _("Weight"),
        }  # fmt: skip
        raise Invalid(" ".join(f"{names[key]}: {said}" if key in names else said for key, said in errors.items()))
    weights = dict(zip(form.of, form.weights, strict=False))
    version = service.combine(
        session, actor, version_id, operation=form.operation,
        others=[(key, weights.get(key, 1.0)) for key in form.others], weight=form.weight, rows=form.rows or 0,
        by=form.by, at_most=form.at_most or 0, is_repeated=form.is_repeated, seed=form.seed,
    )  # fmt: skip
    response = RedirectResponse(f"/versions/{version.id}", 303)
    flash(response, _("Version %(n)s is being made.", n=version.number))
    return response


@router.post("/versions/{version_id}/comparisons")
def compare(session: SessionDep, actor: ActorDep, version_id: str, values: FormValues) -> Response:
    """Compare with an older version (`other`)."""
    found = service.compare(session, actor, str(values.get("other", "")), version_id)
    return RedirectResponse(f"/comparisons/{found.id}", 303)


@router.get("/comparisons/{comparison_id}")
def comparison_page(
    request: Request, session: SessionDep, actor: ActorDep, comparison_id: str,
    kind: differences.Kind | None = None, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:  # fmt: skip
    """What two versions do not have in common; without a `kind`, the first kind of difference that there is."""
    comparison = service.get_comparison(session, actor, comparison_id)
    project = projects.get(session, actor, comparison.project_id)
    old, new = service.compared(session, comparison_id)
    report = service.report_of(comparison)
    kinds: tuple[differences.Kind, ...] = get_args(differences.Kind)
    first = next((name for name in kinds if report and getattr(report, name)), kinds[0])
    looked_at = kind if kind is not None else first
    context: dict[str, Any] = {"project": project, "stage": "clean", "comparison": comparison, "old": old, "new": new}
    context |= {"report": report, "kind": looked_at, "page": page, "per_page": differences.PER_PAGE, "rows": []}
    context["is_live"] = comparison.state in shown.LIVE
    if report is not None:
        folder = service.comparison_dir(comparison.id)
        context["rows"] = differences.rows(folder, versions.folder(old), versions.folder(new), looked_at, page)
    return render(request, "datasets/combining/comparison.html", **context)


@router.get("/comparisons/{comparison_id}/live")
def comparison_live(request: Request, session: SessionDep, actor: ActorDep, comparison_id: str) -> Response:
    comparison = service.get_comparison(session, actor, comparison_id)
    if comparison.state not in shown.LIVE:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return render(request, "datasets/combining/_live.html", comparison=comparison, is_live=True)


@router.get("/versions/{version_id}/card")
def card_page(request: Request, session: SessionDep, actor: ActorDep, version_id: str) -> Response:
    version = versions.get(session, actor, version_id)
    project = projects.get(session, actor, version.project_id)
    text = card.markdown(session, project.name, version)
    return render(
        request, "datasets/combining/card.html", project=project, stage="clean", version=version, body=to_html(text)
    )


@router.get("/versions/{version_id}/card.md")
def card_text(session: SessionDep, actor: ActorDep, version_id: str) -> Response:
    version = versions.get(session, actor, version_id)
    project = projects.get(session, actor, version.project_id)
    headers = {"Content-Disposition": f'attachment; filename="version-{version.number}-data-card.md"'}
    return Response(
        card.markdown(session, project.name, version), media_type="text/markdown; charset=utf-8", headers=headers
    )
