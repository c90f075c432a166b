"""uvicorn: several workers, with their access logs, write into one log, uvicorn.log.

python examples/uvicorn_workers.py [PORT]
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

import mplog

#: For uvicorn, which applies it in each of its processes: the root logger has a handler to the server, and no other
#: logger has any. As a file in JSON, it works with ``uvicorn --log-config`` as well.
LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"server": {"()": "mplog.attach"}},
    "root": {"handlers": ["server"]},
}


async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Runs in a worker. It stands for your application."""
    if scope["type"] == "http":
        logging.getLogger("shop").info("selling %s", scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": f"{os.getpid()}\n".encode()})


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with mplog.LogServer("uvicorn.log", level="INFO"):
        uvicorn.run("uvicorn_workers:app", port=port, workers=2, log_config=LOG_CONFIG)
