"""One leader among several housekeepers: a lease in the database, judged without comparing two machines' clocks."""

import os
import platform
import time

import psutil
from sqlalchemy import Integer, String, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, transaction


class LeaderLease(Base):
    """Who leads `name`, and a number that grows while the leader lives."""

    __tablename__ = "leader_leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(200), default="")
    beat: Mapped[int] = mapped_column(Integer, default=0)


def identity() -> str:
    """This process, told apart from a later one with the same number: node, process id, start time."""
    started = psutil.Process().create_time()
    return f"{platform.node()}:{os.getpid()}:{started:.2f}"


def _is_dead_here(holder: str) -> bool:
    """Whether `holder` was a process of this very machine and runs no more."""
    node, _, rest = holder.rpartition(":")[0].rpartition(":")
    started = holder.rpartition(":")[2]
    if node != platform.node() or not rest.isdigit():
        return False
    try:
        process = psutil.Process(int(rest))
        return f"{process.create_time():.2f}" != started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Leader:
    """A candidate for `name`: `hold` every second or so; it leads while that is true."""

    def __init__(self, name: str, ttl_s: float = 15, holder: str = "") -> None:
        self.name, self.ttl_s, self.holder = name, ttl_s, holder or identity()
        self._seen: tuple[tuple[str, int], float] = (("", -1), 0.0)

    def hold(self) -> bool:
        """Keep the lease, or take one that is free, dead, or stood still for `ttl_s` while we watched."""
        with transaction() as session:
            row = session.execute(
                select(LeaderLease.holder, LeaderLease.beat).where(LeaderLease.name == self.name)
            ).one_or_none()
            if row is None:
                session.add(LeaderLease(name=self.name, holder=self.holder, beat=1))
                try:
                    session.flush()
                except IntegrityError:
                    session.rollback()
                    return False
                return True
            if row.holder not in (self.holder, "") and not _is_dead_here(row.holder) and not self._stood_still(row):
                return False
            result = session.execute(
                update(LeaderLease)
                .where(LeaderLease.name == self.name, LeaderLease.holder == row.holder, LeaderLease.beat == row.beat)
                .values(holder=self.holder, beat=row.beat + 1)
            )
            return bool(result.rowcount == 1)  # type: ignore[attr-defined]

    def _stood_still(self, row: object) -> bool:
        pair, now = (row.holder, row.beat), time.monotonic()  # type: ignore[attr-defined]
        if self._seen[0] != pair:
            self._seen = (pair, now)
        return now - self._seen[1] >= self.ttl_s

    def release(self) -> None:
        """Give the lease up, so that another takes it at once."""
        with transaction() as session:
            session.execute(
                update(LeaderLease)
                .where(LeaderLease.name == self.name, LeaderLease.holder == self.holder)
                .values(holder="")
            )
