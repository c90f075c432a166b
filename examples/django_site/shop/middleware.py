"""Gives each request an id, which all records of the request carry."""

import uuid
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

import mplog


def give_id(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Take the id from the proxy, or make one; the answer has it, too, so that the access log knows it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request_id = request.headers.get("X-Request-ID") or uuid.uuid4().hex
        with mplog.context(request_id=request_id):
            response = get_response(request)
        response["X-Request-ID"] = request_id
        return response

    return middleware
