"""A recipe is measured on this machine: asked for on the page, made by the queue's task, used for the estimate."""

import pytest
from sqlalchemy import select

from app.contracts.probe import Costs, Probed
from app.core import config
from app.core.db import reading, transaction
from app.recipes import calibration, probes
from app.recipes.machine import this_machine
from app.recipes.models import Probe, SpeedRecord
from app.runs.models import Run
from tests.app.recipes.test_pages import form_of
from worker.tasks.probes import make

COSTS = Costs(start_s=6, step_s=0.02, token_s=5e-5, later_step_s=0.02, later_token_s=5e-5, save_s=0.2, finish_s=1.5)
FOUND = Probed(
    device="cpu", precision="fp32", peak_memory_bytes=812_000_000, parameters=9_000, trainable_parameters=9_000,
    train_rows=56, tokens_per_epoch=1720, look_tokens_each=30, validation_rows=8, sample_prompts=3, answer_tokens=0,
    test_tokens=64, checkpoint_bytes=90_000, steps_measured=9, watts=30.0, wall=COSTS, processor=COSTS,
)  # fmt: skip


@pytest.fixture
def asked(page, monkeypatch):
    """A recipe of four quick steps, to be measured; its browser and the probe's id."""
    monkeypatch.setattr(config.get_settings(), "probe_s", 0.0)
    address = f"/projects/{page.project_id}/recipe"
    fields = form_of(page.get(address).text) | {
        "scratch.layers": "2", "scratch.heads": "2", "scratch.width": "16", "scratch.context_length": "32",
        "max_length_tokens": "32", "batch_size": "8", "micro_batch_size": "8", "epochs": "1", "sample_max_tokens": "4",
        "threads": "1",
    }  # fmt: skip
    answer = page.post(address, data={**fields, "do": "measure"})
    assert answer.status_code == 303, answer.text
    with reading() as session:
        probe = session.scalars(select(Probe)).one()
    return page, probe.id


def row(probe_id: str) -> Probe:
    with reading() as session:
        return session.get_one(Probe, probe_id)


def test_a_measured_recipe_has_its_own_estimate_until_something_matters_is_changed(asked):
    browser, probe_id = asked
    address = f"/projects/{browser.project_id}/recipe"
    waiting = browser.get(f"{address}/costs").text
    assert "Waiting for the training device" in waiting
    assert 'hx-trigger="every 2s"' in waiting
    make(probe_id)
    probe = row(probe_id)
    assert (probe.state, probe.error) == ("succeeded", "")
    assert not probes.folder_of(probe_id).exists()
    shown = browser.get(address).text
    assert "Measured here on your own rows." in shown
    assert "not measurable here" in shown
    assert 'hx-trigger="every 2s"' not in browser.get(f"{address}/costs").text
    seconds = probes.measured(probe).wall
    assert seconds.start_s > 0.5
    # Another number of passes is foretold by the same probe, another width is not.
    fields = form_of(shown)
    browser.post(address, data={**fields, "epochs": "3", "do": "save"})
    assert "Measured here" in browser.get(address).text
    browser.post(address, data={**form_of(browser.get(address).text), "scratch.width": "32", "do": "save"})
    assert "By formula." in browser.get(address).text


def test_a_run_that_was_measured_tells_the_next_how_good_that_was(asked):
    browser, probe_id = asked
    with transaction() as session:
        probe = session.get_one(Probe, probe_id)
        probe.state, probe.result = "succeeded", FOUND.model_dump()
    answer = browser.post(f"/projects/{browser.project_id}/runs", data=form_of(browser.get(
        f"/projects/{browser.project_id}/recipe").text))  # fmt: skip
    assert answer.status_code == 303
    with reading() as session:
        estimate = session.scalars(select(Run)).one().estimate
    assert estimate["is_probed"]
    assert estimate["energy_wh"] == pytest.approx(30 * estimate["seconds"] / 3600)
    with transaction() as session:
        calibration.record(
            session, estimate={**estimate, "seconds": 90.0, "tokens": 100}, method="scratch", device="cpu", tokens=100,
            trained_s=50.0, elapsed_s=100.0, memory_bytes=10**9,
        )  # fmt: skip
        kept = session.scalars(select(SpeedRecord)).one()
        assert (kept.is_probed, kept.estimated_bytes, kept.actual_bytes) == (True, estimate["memory_bytes"], 10**9)
        found = calibration.measured(session, this_machine(), estimate["parameters"])
        assert (found.errors, found.probed_errors) == ([], [pytest.approx(0.1)])
    assert "such runs took 10 % more or less" in browser.get(f"/projects/{browser.project_id}/recipe").text


def test_one_probe_at_a_time_and_none_after_stop(asked):
    browser, probe_id = asked
    address = f"/projects/{browser.project_id}/recipe"
    browser.post(address, data={**form_of(browser.get(address).text), "do": "measure"})
    with reading() as session:
        assert len(session.scalars(select(Probe)).all()) == 1
    browser.post(f"{address}/probes/{probe_id}/stop")
    make(probe_id)
    assert (row(probe_id).state, row(probe_id).result) == ("cancelled", {})


def test_a_probe_that_fails_says_why(asked):
    browser, probe_id = asked
    with transaction() as session:
        probe = session.get_one(Probe, probe_id)
        probe.order = {**probe.order, "data_dir": str(config.get_settings().home_dir / "gone")}
    make(probe_id)
    assert row(probe_id).state == "failed"
    assert "Freeze the dataset first" in browser.get(f"/projects/{browser.project_id}/recipe").text


def test_a_range_test_proposes_a_rate_that_one_button_takes_over(asked, monkeypatch):
    monkeypatch.setattr(config.get_settings(), "rates_s", 0.0)
    browser, _ = asked
    address = f"/projects/{browser.project_id}/recipe"
    fields = form_of(browser.get(address).text) | {"learning_rate": "0.000001", "adamw_learning_rate": "0.000002"}
    assert browser.post(address, data={**fields, "do": "rates"}).status_code == 303
    with reading() as session:
        probe_id = session.scalars(select(Probe.id).where(Probe.kind == "rates")).one()
    assert "Waiting for the training device" in browser.get(f"{address}/rates").text
    make(probe_id)
    found = probes.compared(row(probe_id))
    assert found, row(probe_id).error
    rates = [one.learning_rate for one in found.tried]
    assert rates == [pytest.approx(1e-6 * factor) for factor in (1 / 9, 1 / 3, 1, 3, 9)]
    # So far below what these rows need, the highest learns most.
    assert found.proposed == pytest.approx(9e-6)
    shown = browser.get(address).text
    assert "Use 9e-06" in shown
    assert browser.post(f"{address}/probes/{probe_id}/use").status_code == 303
    fields = form_of(browser.get(address).text)
    assert float(fields["learning_rate"]) == pytest.approx(9e-6)
    assert float(fields["adamw_learning_rate"]) == pytest.approx(18e-6)


@pytest.mark.parametrize(
    ("prices", "price"), [({}, None), ({"energy_price_kwh": 0.4}, 0.04), ({"device_price_hour": 2.0}, 1.0)]
)
def test_the_price_is_that_of_the_energy_or_of_the_device(database, monkeypatch, prices, price):
    """Half an hour at 200 watts: 0.1 kWh."""
    for name, value in prices.items():
        monkeypatch.setattr(config.get_settings(), name, value)
    assert probes.price_of(1800, 100) == (pytest.approx(price) if price is not None else None)


def test_a_probe_waits_while_the_device_trains(asked):
    """Whoever finds the device taken leaves the row as it is; it is rung for again."""
    from worker import node

    _, probe_id = asked
    with node.device_lock("0") as mine:
        assert mine is not None
        make(probe_id)
    assert row(probe_id).state == "queued"
