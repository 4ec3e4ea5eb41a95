"""What finished runs reached corrects the estimates of later ones on the same kind of device."""

import pytest

from app.recipes import calibration
from app.recipes.base_facts import from_scratch
from app.recipes.estimate import estimate
from app.recipes.machine import Machine
from app.recipes.material import Material
from tests.factories import a_recipe

MACHINE = Machine(cores=2, memory_bytes=2**33, has_bf16=True)
ESTIMATE = {"flops_per_token": 1e8, "tokens": 10_000, "seconds": 40.0, "parameters": 12_000_000}


def record(session, **changes):
    values = {
        "estimate": ESTIMATE,
        "method": "full",
        "device": "cpu",
        "tokens": 10_000,
        "trained_s": 20.0,
        "elapsed_s": 50.0,
    }
    calibration.record(session, **{**values, **changes})
    session.flush()


def test_speed_and_error_of_a_finished_run(session):
    record(session)
    found = calibration.measured(session, MACHINE, 10_000_000)
    assert found.speeds == [pytest.approx(5e10)]
    assert found.errors == [pytest.approx(0.2)]
    assert (found.starts_s, found.look_speeds) == ([], [])


def test_loading_and_looks_are_measured_apart_from_the_steps(session):
    record(session, estimate={**ESTIMATE, "look_work": 3e10}, start_s=15.0)
    found = calibration.measured(session, MACHINE, 10_000_000)
    assert found.starts_s == [15.0]
    assert found.look_speeds == [pytest.approx(3e10 / (50 - 15 - 20))]


def test_the_next_estimate_is_what_the_last_run_took():
    """Twenty seconds of steps, fifteen of loading and fifteen of looks: measured once, the same run is foretold."""
    recipe = a_recipe(max_steps=None, epochs=3)
    base = from_scratch(recipe.scratch, 40)
    material = Material(
        kind="text", train_rows=500, validation_rows=20, test_rows=0, mean_tokens=30, p95_tokens=31, longest_tokens=32,
        characters=15_000,
    )  # fmt: skip
    first = estimate(recipe, base, material, MACHINE)
    measured = calibration.Measured(
        [first.flops_per_token * first.tokens / 20.0], [0.1], [15.0], [first.look_work / 15.0]
    )
    assert estimate(recipe, base, material, MACHINE, measured=measured).seconds == pytest.approx(50.0, rel=0.001)


def test_a_run_that_stopped_half_way_is_compared_with_half_of_its_estimate(session):
    record(session, tokens=5_000, trained_s=10.0, elapsed_s=25.0)
    assert calibration.measured(session, MACHINE, 10_000_000).errors == [pytest.approx(0.2)]


def test_other_sizes_other_devices_and_blinks_say_nothing(session):
    record(session, device="cuda:0")
    record(session, trained_s=2.0)
    record(session, estimate={})
    record(session, estimate={**ESTIMATE, "parameters": 500_000_000})
    assert calibration.measured(session, MACHINE, 10_000_000) == calibration.Measured()
