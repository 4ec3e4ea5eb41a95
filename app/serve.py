"""`python -m app.serve`: one uvicorn process, as `web` or as `stream`, on a Unix socket or a port."""

import argparse
import os

import uvicorn

from app.core import logging as log_setup
from app.core.config import get_settings


def main() -> None:
    """Entry of the web and stream processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=["all", "web", "stream"], default="all")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", help="path of a Unix socket in a private folder")
    where.add_argument("--listen", help="host:port")
    arguments = parser.parse_args()
    os.environ["GPT_BUILDER_ROLE"] = arguments.role
    get_settings.cache_clear()
    log_setup.configure()
    host, _, port = (arguments.listen or "127.0.0.1:0").rpartition(":")
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        uds=arguments.socket,
        host=host,
        port=int(port),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Only the front can reach this socket, and it replaces what clients say about themselves.
        forwarded_allow_ips="*",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(get_settings().stop_grace_s),
        h11_max_incomplete_event_size=64 * 1024,
    )


if __name__ == "__main__":
    main()
