"""Flask: one log, shop.log, of all processes that `gunicorn`, or `flask run --debug`, starts in this directory."""

import functools
import uuid
from multiprocessing import get_context
from multiprocessing.pool import Pool

from flask import Flask, Response, g, request
from logs import start_logging
from work import price

import mplog


@functools.lru_cache(maxsize=1)
def pool() -> Pool:
    """Return the pool of this worker; the first request creates it."""
    return get_context("spawn").Pool(1, initializer=mplog.attach)


def create_app() -> Flask:
    """Return the application, which logs from its first line."""
    start_logging()
    app = Flask("shop")

    @app.before_request
    def begin() -> None:
        """Give the request an id, which all of its records carry."""
        g.request_id = request.headers.get("X-Request-ID") or uuid.uuid4().hex
        mplog.bind(request_id=g.request_id)

    @app.after_request
    def answer(response: Response) -> Response:
        """Put the id into the answer, too, for the access log."""
        response.headers["X-Request-ID"] = g.request_id
        return response

    @app.teardown_request
    def end(_: BaseException | None) -> None:
        mplog.unbind("request_id")

    @app.get("/price/<item>")
    def show_price(item: str) -> str:
        """Answer a request. Its id travels into the pool."""
        app.logger.info("asked for %s", item)
        return str(pool().apply(mplog.carry_context(price), [item]))

    return app
