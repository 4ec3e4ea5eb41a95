"""How a worker comes back when Redis was away: soon, however long it was away."""

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

RETRY_MAX_S = 5


class Consumer(CeleryConsumer):
    """Celery's consumer, but it tries the broker every few seconds; Celery's own pauses grow to half a minute."""

    def ensure_connected(self, conn: Any) -> Any:
        usual = conn.ensure_connection

        def ensure_connection(*arguments: Any, **named: Any) -> Any:
            return usual(
                *arguments, **{"interval_start": 0.5, "interval_step": 0.5, "interval_max": RETRY_MAX_S, **named}
            )

        conn.ensure_connection = ensure_connection
        return super().ensure_connected(conn)
