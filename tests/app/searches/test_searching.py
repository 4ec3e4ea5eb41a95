"""A search from its form to its best run: values, budget, early endings, interruptions. Real rows, no trainer."""

from datetime import timedelta
from statistics import median

import pytest
from sqlalchemy import func, select

from app.core import config, storage
from app.core.db import reading, transaction, utcnow
from app.core.errors import Conflict, Invalid
from app.recipes.service import Ready
from app.runs.models import Attempt, Checkpoint, MetricPoint, Model, Run
from app.searches import progress, proposing, pruning, service, space
from app.searches.models import Search, Trial
from app.searches.proposing import Tried
from app.searches.space import Dimension
from tests.factories import World, a_recipe, a_world

RATES = Dimension(name="learning_rate", scale="log", low=1e-4, high=1e-1)
BATCHES = Dimension(name="batch_size", scale="doubling", low=2, high=8)


@pytest.fixture
def world(database: object) -> World:
    with transaction() as session:
        return a_world(session)


def begin(world: World, **changes: object) -> str:
    values: dict[str, object] = {"space": [RATES], "way": "bayesian", "budget_runs": 4, "client_request_id": "click"}
    ready = Ready(
        recipe=a_recipe(max_steps=None, epochs=2), version_id=world.version_id, base_model_id=None,
        parent_model_id=None, estimate={"seconds": 60.0, "steps": 20}, name="",
    )  # fmt: skip
    with transaction() as session:
        made = service.start(session, world.actor, project_id=world.project_id, ready=ready, **(values | changes))
        return made.id


def look(search_id: str) -> Search:
    """One look of the housekeeper."""
    progress.advance_all()
    with reading() as session:
        return session.get_one(Search, search_id)


def known(search_id: str) -> list[tuple[Trial, Run]]:
    with reading() as session:
        return service.trials(session, session.get_one(Search, search_id))


def train(run_id: str, losses: list[float], state: str = "running", reason: str = "") -> None:
    """Write what a trainer would have: looks ten steps apart and, for "succeeded", a model."""
    with transaction() as session:
        run = session.get_one(Run, run_id)
        run.state, run.step, run.total_steps, run.best_loss, run.reason = (
            state,
            10 * len(losses),
            90,
            min(losses),
            reason,
        )
        for i, value in enumerate(losses):
            session.merge(MetricPoint(run_id=run_id, name="validation_loss", step=10 * (i + 1), value=value))
        if state == "succeeded":
            session.add(Model(project_id=run.project_id, run_id=run.id, name="m", kind="whole", files={}, step=10))


def test_a_search_runs_one_after_the_other_and_names_the_best(world: World) -> None:
    search_id = begin(world)
    for number, lowest in enumerate((1.9, 1.4, 1.7, 1.6), start=1):
        assert look(search_id).state == "running"
        assert look(search_id).state == "running"  # a second look starts nothing more
        trials = known(search_id)
        assert len(trials) == number
        assert trials[-1][1].state == "queued"
        assert trials[-1][1].priority < 0
        train(trials[-1][1].id, [2.0, lowest], "succeeded")
    ended = look(search_id)
    assert (ended.state, ended.sentence) == ("succeeded", "All 4 runs are done.")
    trials = known(search_id)
    assert ended.best_run_id == trials[1][1].id
    assert ended.best_sentence.startswith("Lowest validation loss of 4 runs: 1.40, with learning rate ")
    assert "The middle of all is 1.65." in ended.best_sentence
    # The first is the recipe as it is; the others are what was proposed, and frozen in their runs.
    assert trials[0][0].values == {"learning_rate": 3e-3}
    for trial, run in trials:
        assert run.recipe["learning_rate"] == trial.values["learning_rate"]
        assert 1e-4 <= run.recipe["learning_rate"] <= 1e-1
    assert len({run.recipe["learning_rate"] for _, run in trials}) == 4


@pytest.mark.parametrize("keeps_all", [False, True])
def test_only_the_best_keeps_its_weights_unless_all_shall(world: World, keeps_all: bool) -> None:
    search_id = begin(world, budget_runs=3, keeps_all=keeps_all)
    for lowest in (1.9, 1.4, 1.401):
        look(search_id)
        run_id = known(search_id)[-1][1].id
        with transaction() as session:
            session.add(
                Checkpoint(run_id=run_id, attempt_id="a", fence=1, step=10, dir="c", manifest_sha256="", size_bytes=7)
            )
        for name in ("model", "checkpoints"):
            (storage.run_dir(run_id) / name).mkdir(parents=True)
            (storage.run_dir(run_id) / name / "weights.safetensors").write_bytes(b"1")
        storage.publish_artefact(storage.run_dir(run_id) / "model", f"models/{run_id}")
        train(run_id, [2.0, lowest], "succeeded")
    ended = look(search_id)
    assert ended.state == "succeeded"
    trials = known(search_id)
    assert ended.best_run_id == trials[1][1].id
    assert "Trial 3 is within 0.5 %" in ended.best_sentence
    stored = config.get_settings().home_dir / "storage/models"
    for trial, run in trials:
        keeps = keeps_all or run.id == ended.best_run_id
        assert trial.freed_bytes == (None if keeps else 7)
        places = [storage.run_dir(run.id) / "model", storage.run_dir(run.id) / "checkpoints", stored / run.id]
        assert [place.exists() for place in places] == [keeps] * 3
        with reading() as session:
            model = session.scalars(select(Model).where(Model.run_id == run.id)).one()
            states = session.scalars(select(Checkpoint.state).where(Checkpoint.run_id == run.id)).all()
        assert (model.deleted_at is None, states) == (keeps, ["kept" if keeps else "removed"])
        if not keeps:
            assert model.retired_because.endswith("Search 1 keeps only the model of its best run.")


def test_what_an_interruption_left_on_disk_is_deleted_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    search_id = begin(world, budget_runs=2)
    for lowest in (1.4, 1.9):
        look(search_id)
        train(known(search_id)[-1][1].id, [2.0, lowest], "succeeded")
    loser = known(search_id)[1][1].id
    (storage.run_dir(loser) / "model").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(progress, "_erase_discarded", lambda: None)
        assert look(search_id).state == "succeeded"
    assert (storage.run_dir(loser) / "model").exists()
    look(search_id)
    assert not (storage.run_dir(loser) / "model").exists()


def test_a_model_that_another_run_builds_on_stays(world: World) -> None:
    search_id = begin(world, budget_runs=2)
    look(search_id)
    first = known(search_id)[-1][1].id
    train(first, [2.0, 1.9], "succeeded")
    with transaction() as session:
        model = session.scalars(select(Model).where(Model.run_id == first)).one()
        session.get_one(Run, first).parent_model_id = None
        other = Run(
            project_id=world.project_id, workspace_id=world.workspace_id, number=99, name="on top", recipe={},
            parent_model_id=model.id,
        )  # fmt: skip
        session.add(other)
    look(search_id)
    train(known(search_id)[-1][1].id, [2.0, 1.2], "succeeded")
    look(search_id)
    assert known(search_id)[0][0].freed_bytes is None


def test_a_doubled_click_is_one_search(world: World) -> None:
    assert begin(world) == begin(world)


def test_a_run_that_falls_behind_is_ended_and_says_against_what(world: World) -> None:
    search_id = begin(world, budget_runs=10)
    for lowest in (1.2, 1.4, 1.6):
        look(search_id)
        train(known(search_id)[-1][1].id, [2.0, 1.8, lowest, lowest], "succeeded")
    look(search_id)
    trial, run = known(search_id)[-1]
    train(run.id, [2.0, 1.9])
    look(search_id)
    assert known(search_id)[-1][1].state == "running"  # two looks are too few
    train(run.id, [2.0, 1.9, 1.5])
    look(search_id)
    trial, run = known(search_id)[-1]
    assert (run.state, run.want, trial.pruned_at_step) == ("cancelling", "cancel", 30)
    assert trial.pruned_because == (
        "Its best validation loss was 1.50 when the middle of 3 others after as many rows was 1.40."
    )


def test_the_median_rule() -> None:
    others = [[(10, 3.0), (20, value), (30, 0.1)] for value in (1.0, 2.0, 3.0)]
    worse = [(5, 3.0), (10, 2.9), (20, 2.5)]
    found = pruning.behind(worse, others)
    assert found is not None
    assert (found.best, found.middle) == (2.5, median((1.0, 2.0, 3.0)))
    assert pruning.behind([(5, 3.0), (10, 2.9), (20, 1.9)], others) is None
    assert pruning.behind(worse, others[:2]) is None
    assert pruning.behind(worse[1:], others) is None
    # Those that have not read as many rows say nothing.
    assert pruning.behind([*worse, (40, 2.5)], others) is None


def test_rows_not_steps_are_compared(world: World) -> None:
    recipe = a_recipe(batch_size=4, evaluate_every_steps=10)
    changed = space.applied(recipe, {"batch_size": 8})
    assert (changed.batch_size, changed.evaluate_every_steps, changed.batch_size % changed.micro_batch_size) == (
        8,
        5,
        0,
    )


def test_hours_end_it_and_what_trains_is_kept(world: World) -> None:
    search_id = begin(world, budget_runs=None, budget_hours=0.5)
    look(search_id)
    run_id = known(search_id)[-1][1].id
    train(run_id, [2.0, 1.8])
    with transaction() as session:
        begun = utcnow() - timedelta(minutes=29)
        session.add(Attempt(run_id=run_id, fence=1, node="n", device="0", started_at=begun))
        session.add(
            Checkpoint(run_id=run_id, attempt_id="a", fence=1, step=10, dir="c", manifest_sha256="", size_bytes=1)
        )
    look(search_id)
    assert known(search_id)[-1][1].want == "run"
    with transaction() as session:
        session.scalars(select(Attempt)).one().started_at = utcnow() - timedelta(minutes=31)
    look(search_id)
    assert known(search_id)[-1][1].want == "stop"
    train(run_id, [2.0, 1.8], "succeeded", "stopped")
    with transaction() as session:
        session.scalars(select(Attempt)).one().ended_at = utcnow()
    ended = look(search_id)
    assert (ended.state, ended.best_run_id) == ("succeeded", run_id)
    assert "30 min" in ended.sentence


def test_stopping_starts_nothing_more(world: World) -> None:
    search_id = begin(world)
    look(search_id)
    with transaction() as session:
        service.request_stop(session, world.actor, search_id)
    look(search_id)
    ended = look(search_id)
    assert (ended.state, ended.sentence) == ("stopped", "Stopped by Ada.")
    assert [run.state for _, run in known(search_id)] == ["cancelled"]
    with pytest.raises(Conflict), transaction() as session:
        service.request_stop(session, world.actor, search_id)


def test_three_failures_in_a_row_end_it(world: World) -> None:
    search_id = begin(world, budget_runs=10)
    for _ in range(3):
        look(search_id)
        run_id = known(search_id)[-1][1].id
        with transaction() as session:
            run = session.get_one(Run, run_id)
            run.state, run.sentence = "failed", "The disk is full."
    ended = look(search_id)
    assert (ended.state, "The disk is full." in ended.sentence, ended.best_run_id) == ("failed", True, None)
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 3


def test_whoever_lost_their_role_starts_nothing(world: World) -> None:
    from app.accounts.models import Member

    search_id = begin(world)
    with transaction() as session:
        session.scalars(select(Member)).one().role = "viewer"
    assert look(search_id).state == "failed"
    assert known(search_id) == []


def test_a_grid_is_every_combination_once() -> None:
    tried: list[Tried] = []
    while (values := proposing.next_of_grid([RATES, BATCHES], 4, tried, seed=1)) is not None:
        tried.append(Tried(values, None, True))
    found = {(one.values["learning_rate"], one.values["batch_size"]) for one in tried}
    assert len(tried) == proposing.grid_size([RATES, BATCHES], 4) == 12
    assert found == {(rate, batch) for rate in (1e-4, 1e-3, 1e-2, 1e-1) for batch in (2, 4, 8)}


def test_tpe_finds_the_low_part_of_a_valley() -> None:
    """Twenty trials on a bowl around 3e-3: the later ones are nearer to it than the first ones."""
    from math import log10

    def loss(values: dict[str, float]) -> float:
        return (log10(values["learning_rate"]) - log10(3e-3)) ** 2

    tried: list[Tried] = []
    for _ in range(20):
        values = proposing.next_of_bayes([RATES], tried, 3, {"learning_rate": 1e-1})
        assert values is not None
        tried.append(Tried(values, loss(values), True))
    assert tried[0].values == {"learning_rate": 1e-1}
    assert median(one.loss or 0 for one in tried[10:]) < median(one.loss or 0 for one in tried[:10])
    assert min(one.loss or 9 for one in tried) < 0.05


def test_what_the_form_says_is_checked_in_words() -> None:
    recipe = a_recipe()
    good = {"vary": ["learning_rate", "schedule"], "low.learning_rate": "1e-4", "high.learning_rate": "1e-2"}
    found = space.read(recipe, {**good, "choices.schedule": ["cosine", "linear"]})
    assert [(one.name, one.choices) for one in found] == [("learning_rate", []), ("schedule", ["cosine", "linear"])]
    for form, field in (
        ({}, "vary"),
        ({**good, "choices.schedule": "cosine"}, "choices.schedule"),
        ({"vary": "learning_rate", "low.learning_rate": "2", "high.learning_rate": "1"}, "high.learning_rate"),
        ({"vary": "learning_rate", "low.learning_rate": "x", "high.learning_rate": "1"}, "low.learning_rate"),
        ({"vary": "learning_rate", "low.learning_rate": "1", "high.learning_rate": "99"}, "high.learning_rate"),
        ({"vary": "batch_size", "low.batch_size": "4", "high.batch_size": "5"}, "high.batch_size"),
        ({"vary": "epochs", "low.epochs": "1", "high.epochs": "1e400"}, "high.epochs"),
    ):
        with pytest.raises(Invalid) as caught:
            space.read(recipe, form)
        assert field in caught.value.fields


def test_only_what_this_machine_can_train_is_searched() -> None:
    recipe = a_recipe()
    assert "adamw_8bit" not in next(one for one in space.offered(recipe) if one.name == "optimizer").choices
    assert "adamw_8bit" in next(one for one in space.offered(recipe, "cuda") if one.name == "optimizer").choices
    form = {"vary": "optimizer", "choices.optimizer": ["adamw", "adamw_8bit"]}
    with pytest.raises(Invalid):
        space.read(recipe, form)


def test_a_budget_is_needed_and_grids_have_a_limit(world: World) -> None:
    with pytest.raises(Invalid) as caught:
        begin(world, budget_runs=None)
    assert "budget_runs" in caught.value.fields
    many = [RATES, BATCHES, Dimension(name="weight_decay", scale="linear", high=0.1),
            Dimension(name="epochs", scale="integer", low=1, high=9)]  # fmt: skip
    with pytest.raises(Invalid) as caught:
        begin(world, way="grid", points=6, space=many)
    assert "combinations" in caught.value.fields["points"]
