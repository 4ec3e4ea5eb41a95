"""Threads that each train on rows of their own, with gradients of their own that are added up in a fixed order.

On a CPU this takes the place of threads within each operation: these meet at a barrier after every operation, which
small models spend half of their time at, and wait there for whichever of them a busy machine has put aside.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Result = TypeVar("Result")
_here = threading.local()


def leaf(parameter: Tensor) -> Tensor:
    """The tensor that this thread learns in place of `parameter`: the same numbers, a gradient of its own."""
    mine: dict[int, Tensor] = getattr(_here, "leaves", {})
    return mine.get(id(parameter), parameter)


def is_one() -> bool:
    """Whether this thread is one of several that train together."""
    return bool(getattr(_here, "is_one", False))


def shares(costs: Sequence[int], count: int) -> list[list[int]]:
    """Which of these rows each of at most `count` threads takes, so that all have about as much to do."""
    parts: list[list[int]] = [[] for _ in range(min(count, len(costs)))]
    loads = [0] * len(parts)
    for number in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = int(np.argmin(loads))
        parts[least].append(number)
        loads[least] += costs[number]
    return [sorted(part) for part in parts]


def run(works: Sequence[Callable[[], Result]], learning: Iterable[nn.Parameter] = ()) -> list[Result]:
    """What each work returns, done at the same time; gradients of `learning` are added in the order of the works.

    Raises the error of the first work that failed, after all have ended.
    """
    if len(works) == 1:
        return [works[0]()]
    parameters, is_learning = list(learning), torch.is_grad_enabled()
    sets = [[p.detach().requires_grad_() for p in parameters] for _ in works]

    def one(work: Callable[[], Result], mine: list[Tensor]) -> Result:
        with _learning(parameters, mine), torch.set_grad_enabled(is_learning):
            return work()

    pool = _pool(len(works), torch.get_num_threads())
    futures = [pool.submit(one, work, mine) for work, mine in zip(works, sets, strict=True)]
    wait(futures)
    found = [future.result() for future in futures]
    for mine in sets:
        pairs = [(p, alias.grad) for p, alias in zip(parameters, mine, strict=True) if alias.grad is not None]
        for parameter, gradient in pairs:
            if parameter.grad is None:
                parameter.grad = gradient
        others = [(p.grad, gradient) for p, gradient in pairs if p.grad is not gradient and p.grad is not None]
        if others:
            torch._foreach_add_([own for own, _ in others], [gradient for _, gradient in others])
    return found


@contextmanager
def _learning(parameters: list[nn.Parameter], mine: list[Tensor]) -> Iterator[None]:
    _here.leaves, _here.is_one = {id(p): alias for p, alias in zip(parameters, mine, strict=True)}, True
    try:
        yield
    finally:
        _here.leaves, _here.is_one = {}, False


@lru_cache(maxsize=4)
def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    """So many threads, none of which asks others for help; `threads` is what the caller goes on with."""
    ready = threading.Barrier(count + 1)

    def alone() -> None:
        torch.get_num_threads()  # a thread's first use of torch gives it the process's number; only then it may be set
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="replica", initializer=alone)
    futures = [pool.submit(lambda: None) for _ in range(count)]
    ready.wait()
    wait(futures)
    torch.set_num_threads(threads)
    return pool
