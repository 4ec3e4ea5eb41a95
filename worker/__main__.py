"""`python -m worker --queue data|train`: one worker process."""

import argparse
import os

from app.core.config import get_settings
from worker.celery_app import serve


def main() -> None:
    """Entry of a worker process. One run at a time on `train`; two pieces of long work on `data`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queue", choices=["data", "train"], required=True)
    parser.add_argument("--concurrency", type=int)
    arguments = parser.parse_args()
    settings = get_settings()
    settings.home_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (settings.redis_url_worker or settings.redis_url):
        parser.error("a worker needs a queue: set GPT_BUILDER_REDIS_URL, or start everything with `gpt-builder up`")
    os.umask(0o077)
    serve(arguments.queue, arguments.concurrency or {"data": 2, "train": 1}[arguments.queue])


if __name__ == "__main__":
    main()
