"""A judge behind an OpenAI-compatible endpoint: one question, one reply."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.json_files import FileModel, Items, parse_json, validated, without_controls

KEY_VARIABLE = "AUTOMODEL_JUDGE_KEY"
_TIMEOUT_S = 120
_MAX_REPLY_BYTES = 4 << 20
_MAX_REASON_BYTES = 64 << 10
_WAITS_S = (1, 4, 16)  # between tries, where a later one may help


class _Said(FileModel):
    content: str | None = None


class _Choice(FileModel):
    message: _Said


class _Completion(FileModel):
    choices: Items[_Choice]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for the address that the user named, and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class JudgeClient:
    """Asks ``model`` at ``url`` (``https://host/v1``, or ``http`` on this machine).

    Raises:
        ConfigError: another kind of address.
    """

    def __init__(
        self, url: str, model: str, key: str | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        is_here = _check(url)
        if key and not (key.isascii() and key.isprintable()):  # as a header it would be shown in an error
            raise ConfigError(f"{KEY_VARIABLE} is no key: it has characters that no key has", "set it anew")
        self._address = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model, self._key, self._sleep = model, key, sleep
        direct = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *direct)

    def __call__(self, text: str) -> str:
        """The judge's reply to ``text``, at temperature 0.

        Raises:
            AutomodelError: it cannot be reached, refuses, or replies with something else.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        reply = parse_json(self._sent(request), "the judge's reply", AutomodelError, hint="is it an OpenAI endpoint?")
        found = validated(reply, _Completion, "the judge's reply", AutomodelError, hint="is it an OpenAI endpoint?")
        return found.choices[0].message.content or "" if found.choices else ""

    def _sent(self, request: urllib.request.Request) -> bytes:
        for wait in (*_WAITS_S, None):
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S) as reply:
                    return bytes(reply.read(_MAX_REPLY_BYTES))
            except urllib.error.HTTPError as error:
                said = self._reason(error)
                problem = f"the judge at {self._address} said {error.code}: {said}"
                if wait is None or not (error.code == 429 or error.code >= 500):
                    raise AutomodelError(problem, f"check --judge-url, --judge-model and {KEY_VARIABLE}") from None
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are of the first kind
                if wait is None:
                    raise AutomodelError(
                        f"the judge at {self._address} cannot be reached: {error}", "check --judge-url"
                    ) from None
            self._sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _reason(self, error: urllib.error.HTTPError) -> str:
        """What the judge says about an error, without the key, which some of them repeat: results files keep it."""
        try:
            said = error.read(_MAX_REASON_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):  # the connection ended meanwhile
            return ""
        return without_controls(said.replace(self._key, "...") if self._key else said)[:300]


def _check(url: str) -> bool:
    """Whether the address is on this machine.

    Raises:
        ConfigError: it is neither there nor https, or carries a password.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ConfigError(f"--judge-url {url!r} is no address", "for example https://api.openai.com/v1") from None
    is_here = host == "localhost" or _is_loopback(host)
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ConfigError(f"--judge-url {url!r} is no address", "for example https://api.openai.com/v1")
    if not host or parts.scheme not in ("https", "http") or (parts.scheme == "http" and not is_here):
        raise ConfigError(
            f"--judge-url {url!r}: expected https://..., or http:// on this machine",
            "the key and the answers would be sent in the clear",
        )
    if parts.username or parts.password:
        raise ConfigError("--judge-url with a name or password in it", f"put the key into {KEY_VARIABLE}")
    return is_here


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
