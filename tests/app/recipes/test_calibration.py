"""What finished runs reached corrects the estimates of later ones on the same kind of device."""

import pytest

from app.recipes import calibration
from app.recipes.machine import Machine

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
    speeds, errors = calibration.measured(session, MACHINE, 10_000_000)
    assert speeds == [pytest.approx(5e10)]
    assert errors == [pytest.approx(0.2)]


def test_a_run_that_stopped_half_way_is_compared_with_half_of_its_estimate(session):
    record(session, tokens=5_000, trained_s=10.0, elapsed_s=25.0)
    assert calibration.measured(session, MACHINE, 10_000_000)[1] == [pytest.approx(0.2)]


def test_other_sizes_other_devices_and_blinks_say_nothing(session):
    record(session, device="cuda:0")
    record(session, trained_s=2.0)
    record(session, estimate={})
    record(session, estimate={**ESTIMATE, "parameters": 500_000_000})
    assert calibration.measured(session, MACHINE, 10_000_000) == ([], [])
