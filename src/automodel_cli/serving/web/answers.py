"""Answers in OpenAI's format, whole or as server-sent events, and the end of requests whose client has left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from automodel_cli.serving.choosing import Score
from automodel_cli.serving.engine import Piece, Request
from automodel_cli.serving.service import Service
from automodel_cli.serving.web.errors import ApiError
from automodel_cli.serving.web.mail import Inbox

_SEND_GRACE_S = 30.0  # beyond a request's time, for clients that read slowly


class Shape:
    """How answers of one kind look; this is ``/v1/completions``.

    ``token``: the bytes of a token id.
    """

    prefix, whole, part = "cmpl-", "text_completion", "text_completion"

    def __init__(self, token: Callable[[int], bytes]) -> None:
        self._token = token

    def text(self, id: int) -> str:
        """A token by itself, as text."""
        return self._token(id).decode("utf-8", errors="replace")

    def first(self) -> dict[str, Any] | None:
        """What stands before the text of a stream."""
        return None

    def of_part(self, text: str, scores: Sequence[Score], offset: int) -> dict[str, Any]:
        """A piece of a choice, ``offset`` characters from its beginning."""
        return {"text": text, "logprobs": self.scores(scores, offset)}

    def of_whole(self, text: str, scores: Sequence[Score]) -> dict[str, Any]:
        """A choice."""
        return self.of_part(text, scores, 0)

    def scores(self, scores: Sequence[Score], offset: int) -> Any:
        """Log-probabilities, or None where none were asked for."""
        if not scores:
            return None
        tokens = [self.text(one.id) for one in scores]
        offsets = [offset]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in scores],
            "top_logprobs": [{self.text(id): value for id, value in one.likeliest} for one in scores],
            "text_offset": offsets,
        }


class ChatShape(Shape):
    """``/v1/chat/completions``"""

    prefix, whole, part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def of_part(self, text: str, scores: Sequence[Score], offset: int) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}, "logprobs": self.scores(scores, offset)}

    def of_whole(self, text: str, scores: Sequence[Score]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self.scores(scores, 0)}

    def scores(self, scores: Sequence[Score], offset: int) -> Any:
        if not scores:
            return None
        content = [
            {
                **self._one(one.id, one.logprob),
                "top_logprobs": [self._one(id, value) for id, value in one.likeliest],
            }
            for one in scores
        ]
        return {"content": content, "refusal": None}

    def _one(self, id: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(id), "logprob": logprob, "bytes": list(self._token(id))}


class Answer(Response):
    """The response to a request with one or more choices.

    Requests are in the engine's line when this is made, and out of it when the client has left.
    """

    def __init__(
        self, service: Service, shape: Shape, requests: Sequence[Request], inbox: Inbox, *, stream: bool, usage: bool
    ) -> None:
        super().__init__()
        self._service, self._shape, self._inbox = service, shape, inbox
        self._stream, self._usage = stream, usage
        self._prompt_tokens = sum(len(prompt) for prompt in {id(one.prompt): one.prompt for one in requests}.values())
        self._tokens = 0
        self._left = len(requests)
        self._tickets = service.engine.submit(requests, [inbox.sink(number) for number in range(len(requests))])
        self._head = {
            "id": shape.prefix + secrets.token_hex(12),
            "object": shape.part if stream else shape.whole,
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.identity,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(scope, receive, send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((pump, left), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            for ticket in self._tickets:
                ticket.cancel()
            for task in (pump, left):
                task.cancel()
            await asyncio.gather(pump, left, return_exceptions=True)

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._stream:
            await (await self._whole())(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        async with asyncio.timeout(self._service.timeout_s + _SEND_GRACE_S):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for body in self._events():
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        while self._left:
            pieces = await self._inbox.next()
            for _, piece in pieces:
                self._tokens += len(piece.ids)
                self._left -= piece.finish is not None
            yield pieces

    async def _whole(self) -> JSONResponse:
        texts = [""] * self._left
        scores: list[list[Score]] = [[] for _ in texts]
        finishes: list[str] = [""] * self._left
        async for pieces in self._pieces():
            for choice, piece in pieces:
                if error := _error(piece):
                    return error.response()
                texts[choice] += piece.text
                scores[choice] += piece.scores
                finishes[choice] = piece.finish or ""
        choices = [
            {"index": number, **self._shape.of_whole(text, some), "finish_reason": finish}
            for number, (text, some, finish) in enumerate(zip(texts, scores, finishes, strict=True))
        ]
        return JSONResponse({**self._head, "choices": choices, "usage": self._counted()})

    async def _events(self) -> AsyncIterator[bytes]:
        """Server-sent events; what came together for a choice is one, unless there are scores."""
        offsets = [0] * self._left
        if first := self._shape.first():
            yield b"".join(self._event(choice, {**first, "finish_reason": None}) for choice in range(self._left))
        async for pieces in self._pieces():
            events: list[bytes] = []
            for choice, text, scores, last in _merged(pieces):
                if error := _error(last):
                    yield b"".join(events) + _data(error.body())
                    return
                part = self._shape.of_part(text, scores, offsets[choice])
                offsets[choice] += len(text)
                events.append(self._event(choice, {**part, "finish_reason": last.finish}))
            yield b"".join(events)
        if self._usage:
            yield _data({**self._head, "choices": [], "usage": self._counted()})
        yield b"data: [DONE]\n\n"

    def _event(self, choice: int, part: dict[str, Any]) -> bytes:
        chunk = {**self._head, "choices": [{"index": choice, **part}]}
        return _data({**chunk, "usage": None} if self._usage else chunk)

    def _counted(self) -> dict[str, int]:
        prompt, answer = self._prompt_tokens, self._tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _merged(pieces: Sequence[tuple[int, Piece]]) -> list[tuple[int, str, list[Score], Piece]]:
    """Text and scores of each choice together, and the last of its pieces."""
    found: dict[int, tuple[str, list[Score], Piece]] = {}
    for choice, piece in pieces:
        text, scores, _ = found.get(choice, ("", [], None))
        found[choice] = (text + piece.text, [*scores, *piece.scores], piece)
    return [(choice, *rest) for choice, rest in found.items()]


def _error(piece: Piece) -> ApiError | None:
    if piece.finish == "timeout":
        return ApiError(504, "the request took longer than the server allows", code="timeout")
    if piece.finish == "cancelled":
        return ApiError(503, "the server is shutting down", code="unavailable")
    if piece.finish == "failed":
        return ApiError(500, f"the model failed: {piece.error}", code="model_error")
    return None


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def _left(receive: Receive) -> None:
    """Return once the client has closed its connection."""
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
