"""The routes of ``automodel watch``: the page's files, the runs, their curves, and a stream of what is new.

All of them only read. A page names runs by the names that the server gave them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from automodel_cli.metrics.run_view import AXES
from automodel_cli.serving.watch.hub import Hub
from automodel_cli.serving.watch.page_files import PAGE_FILES, read_page_file
from automodel_cli.serving.watch.runs import WatchedRun
from automodel_cli.serving.web.errors import ApiError

OPEN_PATHS = frozenset({"/", *(f"/{name}" for name in PAGE_FILES)})
_MOST_BUCKETS = 4000
_SAID = {404: "there is nothing here", 405: "not with this method"}


def make_app(hub: Hub, *, is_stopping: Callable[[], bool] = lambda: False) -> Starlette:
    """The application; ``is_stopping`` ends the streams."""
    routes = _Routes(hub, is_stopping)
    files = [Route("/", _file("watch.html")), *(Route(f"/{name}", _file(name)) for name in PAGE_FILES)]
    answers = {
        "/api/runs": routes.runs,
        "/api/run": routes.run,
        "/api/curves": routes.curves,
        "/api/events": routes.events,
    }
    return Starlette(
        routes=[*files, *(Route(path, answer) for path, answer in answers.items())],
        middleware=[Middleware(GZipMiddleware, minimum_size=2000, compresslevel=1)],
        exception_handlers={ApiError: _tell, HTTPException: _tell_http, Exception: _tell_bug},
    )


class _Routes:
    def __init__(self, hub: Hub, is_stopping: Callable[[], bool]) -> None:
        self._hub, self._is_stopping = hub, is_stopping

    async def runs(self, _: Request) -> Response:
        """``GET /api/runs``: all runs, and the place in the stream from which to go on."""
        place = self._hub.place
        runs = await run_in_threadpool(lambda: [run.overview() for run in self._hub.runs])
        return _json({"place": place, "runs": runs, "left_out": self._hub.runs.left_out})

    async def run(self, request: Request) -> Response:
        """``GET /api/run?run=NAME``: configuration, events, samples, checkpoints, scores."""
        return _json(await run_in_threadpool(self._named(request).details))

    async def curves(self, request: Request) -> Response:
        """``GET /api/curves?run=NAME&axis=step&low=1&high=100&buckets=600&log=1``"""
        run, asked = self._named(request), request.query_params
        axis = asked.get("axis", "step")
        if axis not in AXES:
            raise ApiError(400, f"axis is {axis[:40]!r}, expected one of {', '.join(AXES)}", param="axis")
        low, high = _number(asked.get("low"), "low"), _number(asked.get("high"), "high")
        buckets = _number(asked.get("buckets") or "600", "buckets") or 0.0
        if not 1 <= buckets <= _MOST_BUCKETS:
            raise ApiError(400, f"buckets is {buckets:g}, expected 1 to {_MOST_BUCKETS}", param="buckets")

        def answer() -> Response:
            return _json(run.curves(axis, low, high, int(buckets), log_x=asked.get("log") == "1"))

        return await run_in_threadpool(answer)

    async def events(self, request: Request) -> Response:
        """``GET /api/events?after=PLACE``: server-sent events; a ``Last-Event-ID`` goes before ``after``."""
        place = request.headers.get("last-event-id") or request.query_params.get("after", "")
        stream = self._hub.stream(place, self._is_stopping)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Content-Encoding": "identity"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    def _named(self, request: Request) -> WatchedRun:
        name = request.query_params.get("run", "")
        found = self._hub.runs.get(name)
        if found is None:
            raise ApiError(404, f"there is no run {name[:100]!r}", param="run")
        return found


def _number(text: str | None, name: str) -> float | None:
    if text is None or text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ApiError(400, f"{name} is {text[:40]!r}, expected a number", param=name)
    return value


def _json(value: Any) -> Response:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


def _file(name: str) -> Callable[[Request], Any]:
    data, kind = read_page_file(name).encode(), PAGE_FILES[name]

    async def read(_: Request) -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return read


async def _tell(_: Request, error: Any) -> Response:
    return error.response()


async def _tell_http(_: Request, error: Any) -> Response:
    return ApiError(error.status_code, _SAID.get(error.status_code, str(error.detail))).response()


async def _tell_bug(_: Request, error: Exception) -> Response:
    return ApiError(500, "an internal error", code="internal_error").response()
