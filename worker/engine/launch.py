"""The other processes of a training on several devices: started by the first one, watched by it, ended with it.

They see what `torchrun` would tell them, so that `ranks` meets them in the same way. Called by the command line.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch.distributed as dist

from app.contracts import events as e
from app.contracts.recipe import TrainOrder
from worker.engine.ranks import LONGEST_WAIT

# Whoever fails with the others, for the same reason, has this long to say so itself.
GRACE_S = 5.0
_OWN_CODES = frozenset({e.EXIT_BAD_DATA, e.EXIT_DEVICE_FAULT, *range(e.EXIT_DIVERGED, e.EXIT_NEEDS_LESS + 1)})
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Loss:
    """A companion that ended before its time: the exit code for the whole training, and a sentence."""

    exit_code: int
    sentence: str


class Companions:
    """Every process but this one. A context: leaving it ends them all."""

    def __init__(self, order: TrainOrder) -> None:
        self.count = order.recipe.replicas
        self._loss: Loss | None = None
        self._has_lost, self._is_over = threading.Event(), threading.Event()
        listening = socket.create_server((_LOOPBACK, 0))
        port = listening.getsockname()[1]
        # Where they find one another; nothing outside this machine reaches it.
        self._store = dist.TCPStore(
            _LOOPBACK,
            port,
            self.count,
            is_master=True,
            timeout=LONGEST_WAIT,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        os.environ |= _surroundings(port, self.count) | _place(0)
        line = order.model_dump_json().encode() + b"\n"
        self._others = [self._started(rank, line) for rank in range(1, self.count)]
        for rank, other in enumerate(self._others, 1):
            threading.Thread(target=self._watch, args=(rank, other), daemon=True, name=f"rank-{rank}").start()

    def _started(self, rank: int, line: bytes) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "worker.engine", "train", "--parent", str(os.getpid())]
        # Only this process tells what happens; what the others log goes to the same log.
        one = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, **_place(rank)}
        )
        assert one.stdin is not None
        one.stdin.write(line)
        one.stdin.flush()
        return one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for one in self._others:
            one.kill()
            one.wait()

    def loss(self, wait_s: float = GRACE_S) -> Loss | None:
        """Which companion was lost, if one is or is about to be noticed."""
        self._has_lost.wait(wait_s)
        return self._loss

    def _watch(self, rank: int, one: "subprocess.Popen[bytes]", leave: Callable[[int], object] = os._exit) -> None:
        code = one.wait()
        if code == 0 or self._is_over.is_set():
            return
        if self._loss is None:
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            sentence = (
                f"Process {rank + 1} of the {self.count} that train together ended unexpectedly ({how}); the others "
                "were stopped."
            )
            self._loss = Loss(code if code in _OWN_CODES else e.EXIT_LOST_COMPANION, sentence)
            self._has_lost.set()
        # A graphics card may let this process wait for the lost one for ever.
        if not self._is_over.wait(2 * GRACE_S):
            sys.stderr.write(f"{self._loss.sentence}\n")
            sys.stderr.flush()
            leave(self._loss.exit_code)


def is_first_of_several(order: TrainOrder) -> bool:
    """Whether this process has to start the others: the recipe wants several, and nobody has started them yet."""
    return order.recipe.replicas > 1 and "WORLD_SIZE" not in os.environ


def _surroundings(port: int, count: int) -> dict[str, str]:
    loopback = "lo" if sys.platform.startswith("linux") else "lo0"
    return {
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        # As torchrun says that the meeting place is there already.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


def _place(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}
