"""The only page: /price/<item>."""

import functools
import logging
from multiprocessing import get_context
from multiprocessing.pool import Pool

from django.http import HttpRequest, HttpResponse
from django.urls import path

import mplog
from shop.work import price

log = logging.getLogger("shop.views")


@functools.lru_cache(maxsize=1)
def pool() -> Pool:
    """Return the pool of this worker, which is made with its first request."""
    return get_context("spawn").Pool(1, initializer=mplog.attach)


def show_price(request: HttpRequest, item: str) -> HttpResponse:
    """Answer a request. Its id goes along into the pool."""
    log.info("asked for %s", item)
    return HttpResponse(str(pool().apply(mplog.carry_context(price), [item])))


urlpatterns = [path("price/<item>", show_price)]
