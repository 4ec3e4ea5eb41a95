"""The range test: each rate begins at the same weights, takes the same steps, and the best one is proposed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.contracts.probe import RatesTried, RateTried
from app.contracts.recipe import TrainOrder
from tests.worker.engine.engine_material import turns, write_version
from worker.engine.errors import BadData
from worker.engine.rates import chosen, try_rates

MakeOrder = Callable[..., TrainOrder]


def test_a_rate_far_too_low_is_told_from_one_that_learns(make_order: MakeOrder) -> None:
    found = list(try_rates(make_order("full", learning_rate=1e-3), 0.0))[-1]
    assert isinstance(found, RatesTried)
    assert [one.learning_rate for one in found.tried] == [pytest.approx(1e-3 * f) for f in (1 / 9, 1 / 3, 1, 3, 9)]
    losses = [one.loss for one in found.tried]
    assert all(loss is not None for loss in losses)
    assert found.start_loss is not None
    assert losses[0] is not None
    # The lowest rate hardly moves: had the weights of the rate before it stayed, it would begin far below the start.
    assert losses[0] == pytest.approx(found.start_loss, rel=0.02)
    assert found.proposed == found.tried[-1].learning_rate
    assert found.steps == 6


def test_the_recipes_own_rate_stays_where_it_is_hardly_worse() -> None:
    tried = [RateTried(learning_rate=rate, loss=loss) for rate, loss in ((0.1, 3.0), (0.3, 2.02), (0.9, 2.0))]
    assert chosen(tried, 0.3, 4.0) == 0.3
    assert chosen(tried, 0.3, 2.1) == 0.9
    assert chosen([*tried, RateTried(learning_rate=2.7, loss=None)], 2.7, 4.0) == 0.9
    assert chosen([RateTried(learning_rate=9.0, loss=None)], 9.0, None) == 3.0


def test_without_unseen_rows_it_says_what_to_do(make_order: MakeOrder, tmp_path: Path) -> None:
    data = write_version(tmp_path / "v", [{"messages": turns(f"Say {n}", f"It is {n}.")} for n in range(8)])
    with pytest.raises(BadData, match="validation share"):
        list(try_rates(make_order("lora", data=data), 0.0))
