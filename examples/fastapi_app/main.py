"""FastAPI: one log, shop.log, of all processes that uvicorn starts in this directory.

uvicorn main:app --workers 2 --log-config logging.json
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from typing import Any

from fastapi import FastAPI
from work import price

import mplog

log = logging.getLogger("shop.main")


class RequestId:
    """Gives each request an id, which all of its records carry, uvicorn's access log included."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Run the application in the context of the id."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = dict(scope.get("headers", ())).get(b"x-request-id", b"").decode("latin-1")
        with mplog.context(request_id=given or uuid.uuid4().hex):
            await self._app(scope, receive, send)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep a pool while the application runs."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=mplog.attach) as app.state.pool:
        log.info("ready")
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(RequestId)


@app.get("/price/{item}")
async def show_price(item: str) -> int:
    """Answer a request. Its id travels into the pool."""
    log.info("asked for %s", item)
    return await asyncio.get_running_loop().run_in_executor(app.state.pool, mplog.carry_context(price), item)
