"""The run page as a person uses it: a doubled click, a filtered log, numbers as they are written."""

import re
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from app.core import storage
from app.core.db import new_id, reading, transaction, utcnow
from app.core.errors import NotFound
from app.runs import reconcile, service
from app.runs.models import Checkpoint, MetricPoint, Model, Run, RunEvent, SampleAnswer
from tests.conftest import wait_for
from tests.factories import World, a_recipe, a_world
from tests.visitors import browser_of, make_person


@pytest.fixture
def world(database: object) -> World:
    with transaction() as session:
        return a_world(session)


@pytest.fixture
def browser(app, world):
    return browser_of(app, make_person(workspace_id=world.workspace_id))


def a_run(world: World, state: str = "running", **values: object) -> str:
    with transaction() as session:
        run = service.start(
            session, world.actor, project_id=world.project_id, version_id=world.version_id, recipe=a_recipe(),
            client_request_id=new_id(),
        )  # fmt: skip
        run.state = state
        for name, value in values.items():
            setattr(run, name, value)
        return run.id


def forms_to(page: str, action: str) -> list[dict[str, str]]:
    """The hidden fields of every form that posts there."""
    forms = re.findall(rf'<form[^>]*action="{action}"[^>]*>(.*?)</form>', page, re.S)
    return [dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form)) for form in forms]


def test_a_doubled_click_on_run_again_is_one_run(browser, world):
    old = a_run(world, "cancelled")
    page = browser.get(f"/runs/{old}").text
    found = forms_to(page, f"/runs/{old}/again")
    assert len(found) == 2  # the coach's button, and the menu's
    places = {browser.post(f"/runs/{old}/again", data=fields).headers["location"] for fields in found * 2}
    assert len(places) == 1
    # Whoever comes back later and asks for one more gets one more.
    fields = forms_to(browser.get(f"/runs/{old}").text, f"/runs/{old}/again")[0]
    assert browser.post(f"/runs/{old}/again", data=fields).headers["location"] not in places
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 3


def test_a_log_of_warnings_only_does_not_make_a_healthy_run_stand_still(browser, world):
    run_id = a_run(world, step=50, total_steps=100, trained_s=50.0)
    with transaction() as session:
        old = utcnow() - timedelta(hours=1)
        session.add(RunEvent(run_id=run_id, at=old, level="warning", kind="warned", sentence="The disk fills up."))
        session.add(RunEvent(run_id=run_id, at=utcnow(), level="info", kind="saved", sentence="Step 50 is saved."))
    page = browser.get(f"/runs/{run_id}?log=warning").text
    assert "The disk fills up." in page
    assert "Step 50 is saved." not in page
    assert "No progress for" not in page


def test_a_number_with_two_meanings_changes_nothing(browser, world):
    run_id = a_run(world)
    for value, said in (("1,000", "can be read as 1000 or as 1."), ("2.5", "whole number"), ("nan", "finite number")):
        answer = browser.post(f"/runs/{run_id}/adjust", data={"name": "evaluate_every_steps", "value": value})
        assert answer.status_code == 422
        assert said in answer.text
    assert browser.post(f"/runs/{run_id}/adjust", data={"name": "epochs", "value": "2,5"}).status_code == 303
    with reading() as session:
        assert session.get_one(Run, run_id).adjustments == {"epochs": 2.5}
    assert "It holds from the run&#39;s next step on." in browser.get(f"/runs/{run_id}").text


def test_the_curves_come_as_a_table_for_everybody_who_may_look(app, browser, world):
    run_id = a_run(world, step=2, total_steps=100)
    with transaction() as session:
        for name, step, value in (("loss", 1, 4.5), ("loss", 2, 3.25), ("validation_loss", 2, 3.5)):
            session.add(MetricPoint(run_id=run_id, name=name, step=step, value=value))
    reader = browser_of(app, make_person("Vera", "viewer", workspace_id=world.workspace_id))
    assert f"/runs/{run_id}/values.csv" in reader.get(f"/runs/{run_id}").text
    answer = reader.get(f"/runs/{run_id}/values.csv")
    assert answer.text == "step,training loss,validation loss\r\n1,4.5,\r\n2,3.25,3.5\r\n"
    assert "attachment" in answer.headers["content-disposition"]


def test_the_answers_of_all_looks_stand_under_one_another(browser, world):
    run_id = a_run(world, step=20, total_steps=100, best_step=10)
    with transaction() as session:
        for step, text in ((10, "the cat sat"), (20, "the cat the cat")):
            for index, prompt in enumerate(("the cat", "a dog")):
                said = f"{text} {index}"
                session.add(SampleAnswer(run_id=run_id, step=step, prompt_index=index, prompt=prompt, text=said))
    page = browser.get(f"/runs/{run_id}").text
    assert "the cat the cat 0" in page
    assert "the cat sat 0" not in page
    page = browser.get(f"/runs/{run_id}?sample=all").text
    places = [page.index(f"{text}<") for text in ("the cat sat 0 ", "the cat the cat 0 ", "the cat sat 1 ")]
    assert places == sorted(places)
    assert "skip=samples" in page, "the stream must not put one look in their place"
    with transaction() as session:
        session.get_one(Run, run_id).state = "succeeded"
    page = browser.get(f"/runs/{run_id}").text
    assert "the cat sat 0" in page, "what became the model is shown first"
    assert "the cat the cat 0" not in page
    assert "sample-best" in page
    with transaction() as session:
        session.get_one(Run, run_id).best_step = 15
    page = browser.get(f"/runs/{run_id}").text
    assert "the cat sat 0" in page, "the last answers before what became the model"
    assert "sample-best" not in page, "answers of another look are not called the best"
    assert "Your model is step 15." in page


def test_the_share_of_right_guesses_has_its_curve(browser, world):
    run_id = a_run(world, step=30, total_steps=100)
    with transaction() as session:
        for step, value in ((7, 0.25), (17, 0.5), (27, 0.615)):
            session.add(MetricPoint(run_id=run_id, name="validation_accuracy", step=step, value=value))
    page = browser.get(f"/runs/{run_id}").text
    assert "Right guesses: from 25 % to 62 % until step 27" in page
    points = browser.get(f"/runs/{run_id}/metrics.json?name=validation_accuracy").json()
    assert points == {"step": [7, 17, 27], "text": ["25 %", "50 %", "62 %"]}
    assert browser.get(f"/runs/{run_id}/metrics.json?name=secret").status_code == 404


def test_the_weights_of_an_ended_run_are_deleted_and_the_rest_stays(browser, world):
    run_id = a_run(world, step=50, total_steps=100)
    folder = storage.run_dir(run_id)
    for name in ("model", "checkpoints/step-00000050"):
        (folder / name).mkdir(parents=True)
        (folder / name / "weights.safetensors").write_bytes(b"w" * 500)
    with transaction() as session:
        place = {"run_id": run_id, "dir": "checkpoints/step-00000050", "attempt_id": "a", "manifest_sha256": "0" * 64}
        session.add(Checkpoint(**place, step=50, fence=1, size_bytes=3_000_000))
        model = Model(project_id=world.project_id, run_id=run_id, name="Soup", kind="whole", files={}, step=50)
        model.size_bytes = 2_000_000
        session.add(model)
        session.flush()
        model_id = model.id
    assert 'commandfor="run-discard" command="show-modal"' not in browser.get(f"/runs/{run_id}").text
    assert browser.post(f"/runs/{run_id}/discard").status_code == 409, "a run that trains keeps what it needs"
    with transaction() as session:
        session.get_one(Run, run_id).state = "succeeded"
    page = browser.get(f"/runs/{run_id}").text
    assert 'commandfor="run-discard" command="show-modal"' in page
    assert "go for good: 5.0 MB." in page
    answer = browser.post(f"/runs/{run_id}/discard")
    assert answer.status_code == 303
    wait_for(lambda: not (folder / "model").exists() and not any(folder.glob("checkpoints/*")), "the files go")
    page = browser.get(f"/runs/{run_id}").text
    assert "Finished, weights not kept" in page
    assert 'commandfor="run-discard" command="show-modal"' not in page
    with reading() as session:
        assert service.models_of(session, world.actor, world.project_id) == []
        with pytest.raises(NotFound, match="was deleted"):
            service.get_model(session, world.actor, model_id)


def test_weights_that_an_interruption_left_are_tidied_away(world):
    run_id = a_run(world, "succeeded")
    kept = a_run(world, "succeeded")
    with transaction() as session:
        for one, gone_at in ((run_id, utcnow()), (kept, None)):
            model = Model(project_id=world.project_id, run_id=one, name="Soup", kind="whole", files={}, step=1)
            model.deleted_at = gone_at
            session.add(model)
    for one in (run_id, kept):
        (storage.run_dir(one) / "model").mkdir(parents=True)
    reconcile.tidy()
    assert not (storage.run_dir(run_id) / "model").exists()
    assert (storage.run_dir(kept) / "model").exists()


def test_the_page_names_the_passes_that_were_made(browser, world):
    """Not those that the recipe would allow: a run may be made of fewer steps, or stop before them."""
    batch = a_recipe().batch_size
    told = {"plan": {"train_rows": 45 * batch}, "step": 30, "total_steps": 60}
    for state, passes in (("running", "1.33"), ("succeeded", "0.667")):
        page = browser.get(f"/runs/{a_run(world, state, **told)}").text
        assert re.search(rf"Passes\s*</\w+>\s*<[^>]*>\s*{re.escape(passes)}\s*<", page), state
    page = browser.get(f"/runs/{a_run(world, 'queued')}").text
    assert re.search(rf"Passes\s*</\w+>\s*<[^>]*>\s*{a_recipe().epochs:g}\s*<", page)
