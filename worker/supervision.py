"""The supervisor of a device: claims runs, keeps the lease, records what the trainer says; may die at any moment."""

import logging
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from app.contracts.events import EXIT_CANCELLED, EXIT_DONE, EXIT_PAUSED, Control, Ended
from app.contracts.recipe import RecipeSpec, TrainOrder
from app.contracts.relief import ladder
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading
from app.core.errors import AppError, DiskFull
from app.core.work import LostLease
from app.runs import settling
from app.runs.claim import RunLease, claim
from app.runs.models import Run
from app.runs.outcomes import Facts
from app.runs.recording import Recorder
from worker import node
from worker.computer import Computer
from worker.room import TrainingRoom
from worker.trainer import COMMAND, Trainer, boot_id, memory_kills

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.2
_ASK_EVERY_S = 1.0
_HANG_AT_LEAST_S = 600.0
_HANG_STEPS = 20
_KEPT_ENDINGS = ("completed", "early_stopped", "time_is_up", "stopped_and_kept")
# What a trainer that has said its last word would have ended with, had it not been killed on its way out.
_SAID_CODES = {"paused": EXIT_PAUSED, "cancelled": EXIT_CANCELLED} | dict.fromkeys(_KEPT_ENDINGS, EXIT_DONE)


def work_off(device: str, draining: threading.Event, *, command: Sequence[str] = COMMAND) -> int:
    """Train what is queued, one run after the other, until nothing is due; how many attempts were made.

    Returns at once when another supervisor on this machine has the device.
    """
    made = 0
    with node.device_lock(device) as mine:
        if mine is None:
            return 0
        node.release_leftovers(device)
        while not draining.is_set():
            with ExitStack() as others:
                hold = partial(node.hold_devices, others)
                claimed = claim(node=node.name(), device=device, boot_id=boot_id(), hold=hold)
                if claimed is None:
                    break
                Supervision(RunLease(claimed), draining, command, device).run()
            made += 1
    return made


class Supervision:
    """One attempt, from the claim to its end."""

    def __init__(
        self, lease: RunLease, draining: threading.Event, command: Sequence[str] = COMMAND, device: str = "0"
    ) -> None:
        self.lease, self.draining, self.command, self.device = lease, draining, command, device
        self.recorder = Recorder(lease)
        self.room = TrainingRoom(lease)
        self.want = "run"
        self.told: set[tuple[str, object]] = set()
        self.ended: Ended | None = None
        self.is_lost = threading.Event()
        self.is_hung = False
        self.is_cut_off = False
        self._over = threading.Event()
        self._asked_at = 0.0

    def run(self) -> None:
        """Supervise until the run has moved on. Every way out leaves no trainer behind."""
        beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        beating.start()
        run_id = self.lease.claimed.run_id
        try:
            with ExitStack() as stack:
                node.kill_earlier_trainers(run_id)
                lock = stack.enter_context(node.run_lock(run_id))
                if lock is None:
                    settling.give_back(self.lease)
                    return
                kills = memory_kills()
                trainer = self._spawn(lock)
                # From here on only the trainer holds the run's lock: it is free exactly when the trainer is gone.
                stack.close()
                try:
                    self._watch(trainer)
                finally:
                    if trainer.exit_code is None:
                        trainer.kill()
                    trainer.close()
                self._settle(trainer, memory_kills() > kills)
        except LostLease:
            log.warning("lease lost", extra={"run": run_id})
        except DiskFull as error:
            settling.wait_for_space(self.lease, error.sentence)
        except Exception as error:
            log.exception("supervision failed", extra={"run": run_id})
            settling.give_up_attempt(self.lease, error)
        finally:
            self._over.set()
            beating.join(timeout=5)
            self.room.end()

    def _spawn(self, lock: int) -> Trainer:
        with reading() as session:
            run = session.get_one(Run, self.lease.claimed.run_id)
        self.want = run.want
        self.recorder.recorded_step = settling.drop_unregistered(self.lease)
        order = order_of(run)
        storage.require_space(0)
        self.room.hold()  # models that have to go are gone before the trainer loads its own
        trainer = Trainer(
            order, command=self.command, lock=lock, devices=order.recipe.devices or node.only(self.device)
        )
        self._tell_recorded(trainer)
        try:
            one = trainer.identity
            settling.record_trainer(self.lease, pid=one.pid, started=one.started, boot_id=one.boot_id)
        except BaseException:
            trainer.kill()
            raise
        return trainer

    def _watch(self, trainer: Trainer) -> None:
        """The loop: events in, controls out, until the trainer has ended or must be ended."""
        settings = get_settings()
        heard_at, asked_to_end_at = time.monotonic(), 0.0
        computer = Computer(trainer.identity.pid, trainer.cards)
        while not trainer.has_closed:
            event = trainer.next_event(_LOOK_EVERY_S)
            while event is not None:
                heard_at = time.monotonic()
                if isinstance(event, Ended):
                    self.ended = event
                self.recorder.take(event)
                event = trainer.next_event(0)
            self.recorder.observe(computer.look())
            self._flush()
            self._tell_recorded(trainer)
            if self.is_lost.is_set() or self.lease.unrenewed_s >= settings.lease_self_stop_s:
                trainer.kill()
                self.is_lost.set()
                return
            if self.lease.unrenewed_s >= settings.lease_self_stop_s * 2 / 3 and not self.is_cut_off:
                # Out of touch with the database: save while there is time.
                self.is_cut_off = True
                trainer.tell(Control(verb="pause"))
            self._ask(trainer)
            if (self.want == "cancel" or self.draining.is_set()) and not asked_to_end_at:
                asked_to_end_at = time.monotonic()
                trainer.tell(Control(verb="cancel" if self.want == "cancel" else "pause"))
                if self.want != "cancel":
                    trainer.ask_to_end()  # reaches it in the long phases before the first step too
            if self.want == "restart":
                trainer.kill()  # it stands still: nothing it could be told would reach it
            grace = settings.stop_grace_s if self.want == "cancel" else settings.drain_grace_s
            if asked_to_end_at and time.monotonic() - asked_to_end_at > grace:
                trainer.kill()
            if not trainer.has_closed and time.monotonic() - heard_at > self._patience_s():
                self.is_hung = True
                trainer.dump_stacks()
                if not trainer.wait(5):
                    trainer.kill()
        trainer.wait(settings.stop_grace_s)

    def _patience_s(self) -> float:
        """How long silence is no sign of a standstill."""
        times = self.recorder.step_times[-200:]
        return max(get_settings().hang_s, _HANG_STEPS * statistics.median(times) if times else 0.0)

    def _flush(self) -> None:
        if not self.recorder.is_due:
            return
        try:
            self.recorder.flush()
        except LostLease:
            self.is_lost.set()
        except SQLAlchemyError as error:
            log.warning("not recorded yet: %s", error)

    def _tell_recorded(self, trainer: Trainer) -> None:
        """Say which checkpoint a later attempt would go on from: should this process stand still, it must stay."""
        step = self.recorder.recorded_step
        if step and ("recorded", step) not in self.told:
            self.told.add(("recorded", step))
            trainer.tell(Control(verb="recorded", value=step))

    def _ask(self, trainer: Trainer) -> None:
        """Read what people want, once a second, and tell the trainer what is new."""
        if time.monotonic() - self._asked_at < _ASK_EVERY_S:
            return
        self._asked_at = time.monotonic()
        try:
            with reading() as session:
                run = session.get_one(Run, self.lease.claimed.run_id)
        except SQLAlchemyError as error:
            log.warning("wishes not read: %s", error)
            return
        if (run.fence, run.attempt_id) != (self.lease.claimed.fence, self.lease.claimed.attempt_id):
            self.is_lost.set()
            return
        self.want = run.want
        for name, value in run.adjustments.items():
            if (name, value) not in self.told:
                self.told.add((name, value))
                trainer.tell(Control(verb="adjust", name=name, value=value))
        if self.want in ("pause", "stop") and ("want", self.want) not in self.told:
            self.told.add(("want", self.want))
            trainer.tell(Control(verb="pause" if self.want == "pause" else "stop_and_keep"))

    def _beat(self) -> None:
        while not self._over.wait(get_settings().lease_heartbeat_s):
            try:
                with self.lease.write():
                    pass
            except LostLease:
                if not self._over.is_set():
                    self.is_lost.set()
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat not written: %s", error)
            self.room.hold()

    def _settle(self, trainer: Trainer, was_memory_short: bool) -> None:
        """Write the end of the attempt; the database may need a while to come back."""
        if self.is_lost.is_set():
            settling.give_back_quietly(self.lease)
            raise LostLease(self.lease.claimed.run_id)
        settling.patiently(self.recorder.flush)
        ended, exit_code = self.ended, trainer.exit_code
        if ended and trainer.has_closed and exit_code == -signal.SIGKILL:
            # On a crowded machine even leaving can take longer than the grace; what it had to write is written.
            exit_code = _SAID_CODES.get(ended.reason, exit_code)
        if ended and exit_code == EXIT_DONE and ended.reason in _KEPT_ENDINGS and self.want != "cancel":
            settling.succeed(self.lease, ended)
            return
        message = ended.message if ended and ended.message else ""
        settling.settle(
            self.lease,
            lambda run, kept: Facts(
                exit_code=exit_code,
                message=message,
                want=run.want,
                step=ended.step if ended else run.step,
                total_steps=run.total_steps,
                stalled_attempts=run.stalled_attempts,
                memory_rung=run.plan.get("memory_rung", 0),
                relief=next_relief(run),
                learning_rate=run.adjustments.get("learning_rate", run.recipe["learning_rate"]),
                kept_step=kept,
                is_drained=self.draining.is_set() or self.is_cut_off,
                is_hung=self.is_hung,
                was_memory_short=was_memory_short,
                log_tail=trainer.log_tail,
            ),
        )


def next_relief(run: Run) -> str:
    """What the next rung of the ladder changes for want of memory, in words; empty when none is left."""
    has_cuda = run.plan.get("device") == "cuda"
    left = ladder(RecipeSpec.model_validate(run.recipe), has_cuda=has_cuda)[run.plan.get("memory_rung", 0) + 1 :]
    return left[0].words if left else ""


def order_of(run: Run) -> TrainOrder:
    """What the trainer is told. Raises AppError when the dataset version cannot be fetched."""
    recipe = RecipeSpec.model_validate(run.recipe)
    # Two at least: until the newest is registered, the one before is what a new attempt goes on from.
    keep = max(2, recipe.keep_checkpoints)
    # The hours as changed since: its clock runs before it is told anything else.
    recipe = recipe.model_copy(update={"keep_checkpoints": keep, "max_hours": run.max_hours})
    version_id = run.frozen["version_id"]
    folder = storage.version_dir(version_id)
    if not folder.is_dir():
        try:
            storage.fetch_artefact(f"versions/{version_id}", folder)
        except OSError as error:
            raise AppError("The dataset version is not on this machine and could not be fetched.") from error
    return TrainOrder(
        run_id=run.id,
        attempt_id=str(run.attempt_id),
        fence=run.fence,
        recipe=recipe,
        base=run.frozen["base"],
        data_dir=str(folder),
        out_dir=str(storage.run_dir(run.id)),
        cache_dir=str(storage.tokens_dir(version_id)),
        resume=True,
        memory_rung=run.plan.get("memory_rung", 0),
        system_prompt=run.frozen["system_prompt"],
        spent_s=run.spent_s,
        storage_reserve_bytes=get_settings().disk_reserve_bytes,
    )
