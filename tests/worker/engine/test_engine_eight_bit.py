"""AdamW in 8 bit: refused with a sentence where it is of no use; where its package is, a checkpoint holds all of it."""

from collections.abc import Callable

import pytest
import torch

from app.contracts.recipe import TrainOrder
from tests.worker.engine.engine_material import run
from worker.engine import optim
from worker.engine.checkpoints import Checkpoints, restore_optimizers
from worker.engine.errors import BadData

MakeOrder = Callable[..., TrainOrder]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_is_refused_before_anything_is_loaded(make_order: MakeOrder) -> None:
    with pytest.raises(BadData, match="needs an NVIDIA graphics card"):
        run(make_order("full", optimizer="adamw_8bit"))


def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(make_order: MakeOrder, tmp_path: object) -> None:
    pytest.importorskip("bitsandbytes")
    order = make_order("full", optimizer="adamw_8bit")

    def weights() -> list[torch.nn.Parameter]:
        torch.manual_seed(5)
        return [torch.nn.Parameter(torch.randn(96, 64)), torch.nn.Parameter(torch.randn(64))]

    def step(parameters: list[torch.nn.Parameter], optimizers: dict[str, torch.optim.Optimizer], count: int) -> None:
        for _ in range(count):
            sum((p - 1).square().sum() for p in parameters).backward()  # type: ignore[union-attr]
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def named(parameters: list[torch.nn.Parameter]) -> optim.Named:
        return [("matrix", parameters[0]), ("bias", parameters[1])]

    whole = weights()
    first = optim.build(named(whole), order.recipe)
    assert set(first) == {"adamw_8bit"}
    step(whole, first, 3)
    store = Checkpoints(tmp_path / "checkpoints", "run1", "a", "", 3)  # type: ignore[operator]
    store.folder.mkdir()
    saved = store.save(3, lambda folder: folder.mkdir(), first, named(whole), {}, None)
    later = [torch.nn.Parameter(p.detach().clone()) for p in whole]
    second = optim.build(named(later), order.recipe)
    restore_optimizers(saved.path, second, named(later))
    state = second["adamw_8bit"].state[later[0]]
    assert state["state1"].dtype is torch.uint8
    assert state["step"] == 3
    step(whole, first, 3)
    step(later, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, later, strict=True))
