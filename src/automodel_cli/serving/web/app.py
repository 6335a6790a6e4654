"""The routes: OpenAI's, health and measures, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from automodel_cli.corpus.conversations.conversation import parse_messages
from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.serving import engine
from automodel_cli.serving.service import Service, Settings, several
from automodel_cli.serving.web.answers import Answer, ChatShape, Shape
from automodel_cli.serving.web.bodies import Body, ChatBody, TextBody
from automodel_cli.serving.web.errors import ApiError
from automodel_cli.serving.web.mail import Inbox, Postman

_PAGE = Path(__file__).with_name("page")
_FILES = {
    "/": ("chat.html", "text/html; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
}

_SAID = {404: "there is nothing here", 405: "not with this method"}


def make_app(service: Service, *, max_tokens: int, connections: Callable[[], int] = lambda: 0) -> FastAPI:
    """The application.

    Args:
        max_tokens: the most that a request may ask for.
        connections: how many are open.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages load scripts from elsewhere
    routes = _Routes(service, max_tokens, connections)
    app.post("/v1/chat/completions")(routes.chat_completions)
    app.post("/v1/completions")(routes.completions)
    app.get("/v1/models")(routes.models)
    app.get("/v1/models/{name:path}")(routes.model)
    app.get("/health")(routes.health)
    app.get("/metrics")(routes.metrics)
    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _file((_PAGE / name).read_bytes(), kind), methods=["GET"])
    _tell_errors(app)
    return app


class _Routes:
    """What answers the paths, but for the page's files."""

    def __init__(self, service: Service, max_tokens: int, connections: Callable[[], int]) -> None:
        self._service, self._max_tokens, self._connections = service, max_tokens, connections
        self._postman: Postman | None = None

    async def chat_completions(self, body: ChatBody) -> Response:
        """``POST /v1/chat/completions``"""
        self._check_model(body.model)
        scores = (body.top_logprobs or 0) if body.logprobs else None
        asked = self._settings(body, body.max_completion_tokens or body.max_tokens, scores)
        request = await run_in_threadpool(self._of_messages, body, asked)
        return self._answer(body, ChatShape(_bytes_of(self._service)), [request])

    async def completions(self, body: TextBody) -> Response:
        """``POST /v1/completions``"""
        self._check_model(body.model)
        asked = self._settings(body, body.max_tokens, body.logprobs)
        requests = await run_in_threadpool(self._of_prompts, body.prompts(), asked)
        return self._answer(body, Shape(_bytes_of(self._service)), requests)

    async def models(self) -> dict[str, Any]:
        """``GET /v1/models``"""
        return {"object": "list", "data": [_model(self._service)]}

    async def model(self, name: str) -> dict[str, Any]:
        """``GET /v1/models/NAME``"""
        self._check_model(name)
        return _model(self._service)

    async def health(self) -> Response:
        """``GET /health``"""
        is_well = self._service.engine.is_alive
        return JSONResponse({"status": "ok" if is_well else "the engine has stopped"}, 200 if is_well else 503)

    async def metrics(self) -> Response:
        """``GET /metrics``, in Prometheus' text format."""
        ours = self._service.engine
        text = ours.measures.text(waiting=ours.waiting, active=ours.active, connections=self._connections())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def _check_model(self, name: str | None) -> None:
        if name not in (None, "", self._service.name):
            message = f"The model {name[:100]!r} does not exist; this server has {self._service.name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")

    def _settings(self, body: Body, tokens: int | None, logprobs: int | None) -> Settings:
        """As the request says, and where it does not as the server was started."""
        ours, most = self._service.defaults, self._max_tokens
        if tokens is not None and tokens > most:
            message = f"max_tokens is {tokens:,}, at most {most:,} are allowed"
            raise ApiError(400, message, param="max_tokens", code="integer_above_max_value")
        return Settings(
            max_tokens=tokens or min(ours.max_tokens, most),
            temperature=ours.temperature if body.temperature is None else body.temperature,
            top_k=ours.top_k if body.top_k is None else body.top_k or None,
            top_p=ours.top_p if body.top_p is None else body.top_p,
            seed=body.seed if body.seed is not None else ours.seed,
            stop_texts=(*ours.stop_texts, *body.stop_texts),
            logprobs=logprobs,
        )

    def _of_messages(self, body: ChatBody, asked: Settings) -> engine.Request:
        try:
            conversation = parse_messages(body.messages)
        except DataError as error:
            raise ApiError(400, f"{error.message}: {error.hint}", param="messages", code="invalid_value") from error
        return self._service.of_conversation(conversation, asked, trim=body.truncation == "auto")

    def _of_prompts(self, prompts: Sequence[str | list[int]], asked: Settings) -> list[engine.Request]:
        ours = self._service
        return [ours.of_text(one, asked) if isinstance(one, str) else ours.of_ids(one, asked) for one in prompts]

    def _answer(self, body: Body, shape: Shape, prompts: Sequence[engine.Request]) -> Answer:
        requests = [one for prompt in prompts for one in several(prompt, body.n or 1)]
        stream, usage = bool(body.stream), bool(body.stream_options and body.stream_options.include_usage)
        most = self._service.engine.max_rows
        if len(requests) > most:
            raise ApiError(400, f"{len(requests)} answers in one request, at most {most} are allowed", param="n")
        return Answer(self._service, shape, requests, self._inbox(whole=not stream), stream=stream, usage=usage)

    def _inbox(self, *, whole: bool) -> Inbox:
        if self._postman is None:
            self._postman = Postman(asyncio.get_running_loop())
        return Inbox(self._postman, whole=whole)


def _bytes_of(service: Service) -> Callable[[int], bytes]:
    return lambda id: service.tokenizer.decode_bytes([id])


def _model(service: Service) -> dict[str, Any]:
    ours = service.defaults
    defaults = {
        "temperature": ours.temperature,
        "top_k": ours.top_k,
        "top_p": ours.top_p,
        "max_tokens": ours.max_tokens,
    }
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "automodel",
        "mode": "chat" if service.chat else "plain",
        "context": service.context,
        "defaults": defaults,
    }


def _file(data: bytes, kind: str) -> Callable[[], Any]:
    async def read() -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return read


def _tell_errors(app: FastAPI) -> None:
    """Every error in OpenAI's format."""

    def told(kind: type[Exception], as_ours: Callable[[Any], ApiError]) -> None:
        async def answer(_: Request, error: Exception) -> Response:
            return as_ours(error).response()

        app.exception_handler(kind)(answer)

    told(ApiError, lambda error: error)
    told(engine.BusyError, lambda error: ApiError(429, f"{error.message}: {error.hint}", code="queue_full"))
    told(AutomodelError, _of_ours)
    told(RequestValidationError, _of_fields)
    told(UnicodeEncodeError, lambda _: ApiError(400, "a text has a lone surrogate, which is no character"))
    told(HTTPException, lambda error: ApiError(error.status_code, _SAID.get(error.status_code, str(error.detail))))
    told(Exception, lambda _: ApiError(500, "an internal error", code="internal_error"))


def _of_ours(error: AutomodelError) -> ApiError:
    code = "context_length_exceeded" if "context" in error.message else None
    return ApiError(400, ": ".join(filter(None, [error.message, error.hint])), code=code)


def _of_fields(error: RequestValidationError) -> ApiError:
    errors = error.errors()
    first = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]][-1]  # of a union the last alternative
    where = [str(part) for part in first["loc"][1:] if isinstance(part, str | int)]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", code="invalid_json")
    if not where:
        return ApiError(400, "expected a JSON object, with Content-Type: application/json")
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(400, f"{'.'.join(where)}: {first['msg']}", param=where[0], code=code)
