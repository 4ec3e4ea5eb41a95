"""A few processes that share the shards of a long piece of work. Results come as they are ready.

Started anew (spawn), one thread of polars and Arrow in each; a process whose parent has died ends by itself.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

MEMORY_LIMIT_BYTES = 2 * 2**30
# A process that has grown past this is replaced after its shard: its allocator gives little back.
RENEW_BYTES = 1200 * 2**20
Item = TypeVar("Item")
Result = TypeVar("Result")


class CrewError(Exception):
    """A process ended before it answered."""


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, item = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = ("result", function(item))
        except Exception as error:
            answer = ("error", error)
        connection.send(answer)


class _Hand:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self.item = -1

    def give(self, number: int, function: Callable[[Any], Any], item: Any) -> None:
        self.item = number
        self.connection.send((function, item))

    def answer(self) -> Any:
        try:
            kind, value = self.connection.recv()
        except EOFError as error:
            self._process.join(5)
            raise CrewError(f"a process ended with {self._process.exitcode}") from error
        if kind == "error":
            raise value
        return value

    def is_large(self) -> bool:
        """Whether it holds much memory. Raises MemoryError past the limit."""
        # One process alone, the usual case, never asks.
        import psutil

        try:
            held = psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:
            return False
        if held > MEMORY_LIMIT_BYTES:
            raise MemoryError("a process of the crew took more than its limit")
        return bool(held > RENEW_BYTES)

    def end(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join(5)


def each(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[tuple[int, Result]]:
    """(number of the item, result) for every item, in the order in which they are ready.

    With one process, or one item, the work is done here. Raises what the function raised, and CrewError.
    """
    if processes < 2 or len(items) < 2:
        for number, item in enumerate(items):
            yield number, function(item)
        return
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    waiting = iter(enumerate(items))
    hands: list[_Hand] = []
    try:
        for number, item in waiting:
            hands.append(_Hand())
            hands[-1].give(number, function, item)
            if len(hands) == processes:
                break
        while busy := [hand for hand in hands if hand.item >= 0]:
            for connection in wait([hand.connection for hand in busy]):
                hand = next(h for h in busy if h.connection is connection)
                done, result = hand.item, hand.answer()
                hand.item = -1
                following = next(waiting, None)
                if following is not None:
                    if hand.is_large():
                        hand.end()
                        hands[hands.index(hand)] = hand = _Hand()
                    hand.give(following[0], function, following[1])
                yield done, result
    finally:
        for hand in hands:
            hand.end()
