"""A trial of a recipe: its heaviest real rows and some of the middle are run, so that a run's cost is known.

Nothing of it is kept; a run afterwards starts as if there had been none.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from app.contracts import events as e
from app.contracts.probe import Costs, Probed
from app.contracts.recipe import RecipeSpec, TrainOrder
from worker.engine import devices, evaluate, finish, optim
from worker.engine.answers import answer
from worker.engine.checkpoints import Checkpoints, optimizer_tensors
from worker.engine.data import TokenRows
from worker.engine.data import order as row_order
from worker.engine.errors import BadData
from worker.engine.gradients import backward
from worker.engine.position import Position
from worker.engine.prepare import Material, Reference, looked_at, prepare

HEAVY_STEPS, MIDDLE_STEPS, WARM_STEPS = 2, 5, 2
MOST_STEPS = 60
LOOKED_ROWS, ANSWER_TOKENS = 32, 48
PASSES_SEARCHED = 20
# Of main memory: what is freed fits what comes next ever worse, so that a whole run takes more than its trial's few
# steps. On the bench's six recipes it took 4 to 18 % more (`benchmarks/estimate_error.py`).
GROWTH = 1.08


@dataclass(frozen=True)
class Clock:
    """Wall clock and processor time of this process in seconds: on a busy machine only the second can be compared."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.monotonic(), time.process_time())

    def until_now(self) -> tuple[float, float]:
        """Seconds passed on both."""
        now = Clock.now()
        return now.wall - self.wall, now.processor - self.processor


@dataclass
class _Seen:
    """Times of each kind of work, (wall, processor) and what was done in them."""

    costs: dict[str, tuple[float, float]] = field(default_factory=dict)
    steps: list[tuple[int, float, float]] = field(default_factory=list)
    later: list[tuple[int, float, float]] = field(default_factory=list)
    test_tokens: float = 0.0


def probe(order: TrainOrder, seconds: float, began: Clock | None = None) -> Iterator[e.EngineEvent]:
    """Tell what happens, and at the end what was measured. `began`: when the process did.

    Quick steps are repeated for `seconds`, slow ones a few times.

    Raises EngineError as a run does; what does not fit in memory raises it too, with the sentence of a run.
    """
    began = began or Clock.now()
    recipe, seen = order.recipe, _Seen()
    devices.keep_freed_memory()  # as a run does: its peak is another with it, and its steps are shorter
    devices.set_threads(recipe.threads)
    device = devices.choose(recipe)
    torch.manual_seed(recipe.seed)
    yield e.Progress(phase="loading")
    micro = recipe.micro_batch_size if recipe.packing else 1
    material = yield from prepare(order, device, micro)
    if recipe.learn_from == "preferences":
        empty = [np.zeros(len(rows.rids), np.float32) for rows in (material.train_rows, material.validation_rows)]
        material = replace(material, reference=Reference(*empty))
    named = optim.learning_parameters(material.model)
    optimizers = optim.build(named, recipe, material.embedding_ids)
    seen.costs["start_s"] = began.until_now()

    def step(chosen: np.ndarray) -> tuple[float, float]:
        at = Clock.now()
        backward(material, chosen, device, recipe, micro)
        optim.clip(named, recipe.clip_norm)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        devices.settle(device.device)
        return at.until_now()

    yield e.Progress(phase="measuring")
    material.model.train()
    yield from _measure_steps(material, recipe, seen, step, micro, seconds)
    material.model.eval()
    yield from _measure_looks(material, recipe, device, seen)
    _measure_answers(material, recipe, device, seen)
    saved_bytes = _measure_end(order, material, optimizers, named, seen)
    yield _told(recipe, material, device, seen, named, saved_bytes)


def _measure_steps(
    material: Material,
    recipe: RecipeSpec,
    seen: _Seen,
    step: Callable[[np.ndarray], tuple[float, float]],
    micro: int,
    measured_s: float,
) -> Generator[e.Progress, None, None]:
    """The heaviest step of the run twice, then steps around the middle of the first pass."""
    rows = material.train_rows
    first = row_order(rows, recipe.seed, 0, recipe.chats_last_share)
    first_steps = [first[start : start + recipe.batch_size] for start in range(0, len(first), recipe.batch_size)]
    tokens = _in_steps(_tokens_each(rows)[first], recipe.batch_size, recipe.batch_size)
    by_size = np.argsort(tokens, kind="stable")
    middle = [int(by_size[round(share * (len(by_size) - 1))]) for share in (0.5, 0.35, 0.65, 0.2, 0.8)]
    keeps = material.prefix is not None and material.prefix.train is not None
    first_s = step(first_steps[middle[0]])
    for _ in range(WARM_STEPS - 1):
        again_s = step(first_steps[middle[0]])
    if not keeps:
        seen.costs["first_s"] = (max(0.0, first_s[0] - again_s[0]), max(0.0, first_s[1] - again_s[1]))
    heavy = heaviest(rows, recipe, micro)
    heavy_tokens = int(_tokens_each(rows)[heavy].sum())
    for number in range(HEAVY_STEPS):
        took = step(heavy)
        # The first time also prepares for rows of these lengths, and reads all frozen layers that its rows need.
        if number:
            (seen.later if keeps else seen.steps).append((heavy_tokens, *took))
    began, done = Clock.now(), 0
    # Steps of the first pass that have not been read yet: where frozen layers are kept, only those cost their whole.
    spread = iter(_spread(by_size, {middle[0]}))
    while done < MIDDLE_STEPS or (done < MOST_STEPS and _has_time(began, measured_s)):
        other = next(spread, None)
        if other is None and keeps:
            break
        number = middle[done % len(middle)] if other is None else other
        seen.steps.append((int(tokens[number]), *step(first_steps[number])))
        if keeps:
            seen.later.append((int(tokens[number]), *step(first_steps[number])))
        done += 1
        yield e.Progress(phase="measuring", done=done, total=MOST_STEPS)
    seen.steps = seen.steps or seen.later


def _has_time(began: Clock, measured_s: float) -> bool:
    """On a machine that does much else, so many seconds of the processor are waited for, within reason."""
    wall, processor = began.until_now()
    return wall < measured_s or (processor < measured_s and wall < 4 * measured_s)


def _spread(by_size: np.ndarray, without: set[int]) -> Iterator[int]:
    """Numbers of steps from the middle outwards, then everywhere: first the fifths, then ever finer parts."""
    told = set(without)
    for parts in (2, 5, 10, 20, 40, 80):
        for part in range(1, parts):
            number = int(by_size[round(part / parts * (len(by_size) - 1))])
            if number not in told:
                told.add(number)
                yield number


def _measure_looks(
    material: Material, recipe: RecipeSpec, device: devices.Device, seen: _Seen
) -> Generator[e.Progress, None, None]:
    """Validation loss of a few rows, twice: the first time frozen layers are read, afterwards they are kept."""
    if not len(material.validation_rows) or not recipe.validation_rows:
        return
    yield e.Progress(phase="looking")
    fewer = recipe.model_copy(update={"validation_rows": min(recipe.validation_rows, LOOKED_ROWS)})
    position = Position(recipe.micro_batch_size, recipe.learning_rate, recipe.epochs, recipe.evaluate_every_steps)
    rows = material.validation_rows
    looked = rows.of(looked_at(rows, fewer))
    tokens = max(1, int(rows.lengths[looked].sum()) - len(looked))
    for name in ("look_token_s", "later_look_token_s"):
        at = Clock.now()
        evaluate.evaluate(material, device, fewer, position)
        wall, processor = at.until_now()
        seen.costs[name] = wall / tokens, processor / tokens


def _measure_answers(material: Material, recipe: RecipeSpec, device: devices.Device, seen: _Seen) -> None:
    """A sample answer or two."""
    wall, processor, count = 0.0, 0.0, 0
    for prompt in [*material.prompts[:2], *material.tests[:1]][:2]:
        at = Clock.now()
        with device.autocast():
            said = answer(material.loaded, prompt, min(recipe.sample_max_tokens, ANSWER_TOKENS), recipe.seed)
        passed = at.until_now()
        count += said.tokens
        wall, processor = wall + passed[0], processor + passed[1]
    if count:
        seen.costs["answer_token_s"] = wall / count, processor / count


def _measure_end(
    order: TrainOrder,
    material: Material,
    optimizers: dict[str, torch.optim.Optimizer],
    named: optim.Named,
    seen: _Seen,
) -> int:
    """Save a checkpoint and make a model of it, as a run does; the checkpoint's size in bytes."""
    folder = Path(order.out_dir) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    store = Checkpoints(folder, order.run_id, order.attempt_id, "", 1)
    position = Position(1, order.recipe.learning_rate, order.recipe.epochs, 1, step=1)
    at = Clock.now()
    saved = store.save(
        1,
        lambda place: material.method.write(material.model, place),
        optimizer_tensors(optimizers, named),
        {"position": asdict(position), "threads": torch.get_num_threads(), "versions": finish.versions()},
        None,
    )
    seen.costs["save_s"] = at.until_now()
    tests = material.tests
    seen.test_tokens = float(sum(prompt.answer_tokens for prompt in tests))
    is_told = order.recipe.learn_from != "preferences" and seen.test_tokens > 0
    if is_told:  # the run learns where known answers end; preferences do not teach that, so there it is tried
        tests = [replace(prompt, answer_tokens=ANSWER_TOKENS // 2) for prompt in tests]
    tested: dict[str, float] = {}
    at = Clock.now()
    # So few steps may not have changed what the model says; here that is no fault.
    with contextlib.suppress(BadData):
        tested = finish.finish(order, replace(material, tests=tests), store, None, 1, "completed").stop_test or {}
    wall, processor = at.until_now()
    share = tested.get("seconds", 0.0) / wall
    seen.costs["finish_s"] = wall * (1 - share), processor * (1 - share)
    if tokens := tested.get("tokens"):
        seen.costs["test_token_s"] = wall * share / tokens, processor * share / tokens
        if not is_told:
            seen.test_tokens = tokens
    return saved.size_bytes


def _told(
    recipe: RecipeSpec,
    material: Material,
    device: devices.Device,
    seen: _Seen,
    named: optim.Named,
    checkpoint_bytes: int,
) -> Probed:
    clocks: list[Costs] = []
    for clock in (0, 1):
        costs = {name: both[clock] for name, both in seen.costs.items()}
        step_s, token_s = fitted([(one[0], one[1 + clock]) for one in seen.steps])
        later = seen.later if material.prefix is not None and material.prefix.train is not None else seen.steps
        later_step_s, later_token_s = fitted([(one[0], one[1 + clock]) for one in later])
        clocks.append(
            Costs(**costs, step_s=step_s, token_s=token_s, later_step_s=later_step_s, later_token_s=later_token_s)
        )
    known = [prompt.answer_tokens for prompt in material.tests if prompt.answer_tokens]
    rows = material.validation_rows
    return Probed(
        device=device.device.type,
        precision=device.precision,
        peak_memory_bytes=round(
            devices.peak_memory_bytes(device.device) * (1 if device.device.type == "cuda" else GROWTH)
        ),
        parameters=material.parameters,
        trainable_parameters=sum(p.numel() for _, p in named),
        train_rows=len(material.train_rows),
        tokens_per_epoch=int(material.train_rows.lengths.sum()) - len(material.train_rows.rids),
        look_tokens_each=(float(rows.lengths.sum()) - len(rows.rids)) / len(rows) if len(rows) else 0.0,
        validation_rows=len(rows),
        sample_prompts=min(len(material.prompts), len(recipe.sample_prompts) or evaluate.PROMPTS),
        answer_tokens=float(np.mean(known)) if known else 0.0,
        test_tokens=seen.test_tokens,
        checkpoint_bytes=checkpoint_bytes,
        steps_measured=len(seen.steps),
        wall=clocks[0],
        processor=clocks[1],
    )


def _tokens_each(rows: TokenRows) -> np.ndarray:
    """Tokens that each example puts in."""
    return rows.lengths.reshape(-1, rows.rows_each).sum(axis=1) - rows.rows_each


def _in_steps(tokens: np.ndarray, batch: int, micro: int) -> np.ndarray:
    """Of each step, the most tokens that are in memory at once; `tokens` are the examples' in the order of a pass."""
    padded = np.pad(tokens, (0, -len(tokens) % batch))
    return padded.reshape(-1, batch // micro, micro).sum(axis=2).max(axis=1)


def heaviest(rows: TokenRows, recipe: RecipeSpec, micro: int) -> np.ndarray:
    """The examples of the run's step that holds the most tokens in memory at once: order is a function of the seed."""
    passes = -(-recipe.total_steps(len(rows)) // recipe.steps_per_epoch(len(rows)))
    each, found, most = _tokens_each(rows), np.empty(0, np.int64), -1
    for epoch in range(min(passes, PASSES_SEARCHED)):
        chosen = row_order(rows, recipe.seed, epoch, recipe.chats_last_share)
        in_steps = _in_steps(each[chosen], recipe.batch_size, micro)
        if in_steps.max() > most:
            most, number = in_steps.max(), int(in_steps.argmax())
            found = chosen[number * recipe.batch_size : (number + 1) * recipe.batch_size]
    return found


def fitted(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Seconds a step and seconds a token, neither below zero, that come nearest to (tokens, seconds) of some steps."""
    tokens, seconds = (np.array(column, np.float64) for column in zip(*points, strict=True))
    spread = float(((tokens - tokens.mean()) ** 2).sum())
    slope = float(((tokens - tokens.mean()) * (seconds - seconds.mean())).sum()) / spread if spread else 0.0
    through_zero = float((tokens * seconds).sum() / max(1e-9, (tokens**2).sum()))
    if slope <= 0:
        return float(seconds.mean()), 0.0
    if (fixed := float(seconds.mean() - slope * tokens.mean())) < 0:
        return 0.0, through_zero
    return fixed, slope
