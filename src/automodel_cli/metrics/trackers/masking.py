"""Secrets in what is sent to trackers: masked by their names, wherever they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

REDACTED = "<redacted>"

_SECRET_KEY = re.compile(r"(key|token|secret|password)$", re.IGNORECASE)
# Keys that end like a secret and hold none: special tokens, column names, the name of a metric.
_HARMLESS_KEY = re.compile(
    r"^((bos|eos|eot|pad|unk|sep|cls|mask|image|audio|decoder_start)_token|(text|best_metric|sort|group)_key)$",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(\w+://[^/\s:@]*):[^/\s@]+@")


def redact(value: Any) -> Any:
    """``value`` (nested dicts and lists) with the values of secret-looking keys masked.

    Secret: the key is or ends with key, token, secret or password, in any case (``hf_token``,
    ``WANDB_API_KEY``); not ``bos_token``, ``text_key`` and their like. None and booleans stay: they hold
    none. Passwords inside URLs are masked too.
    """
    if isinstance(value, Mapping):
        return {key: REDACTED if _is_secret(str(key), inner) else redact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return _URL_PASSWORD.sub(rf"\1:{REDACTED}@", value) if isinstance(value, str) else value


def redact_command_line(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with secret-looking values masked: ``--a.key V``, ``--a-key=V``, ``a.key=V``."""
    masked: list[str] = []
    value_follows = False
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        secret = _is_secret(re.split(r"[.-]", key)[-1], value="some") and not value_follows
        if value_follows:
            masked.append(REDACTED)
        else:
            masked.append(f"{key}={REDACTED}" if secret and equals else redact(argument))
        value_follows = secret and not equals and argument.startswith("-")
    return masked


def _is_secret(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or value == "":
        return False
    return bool(_SECRET_KEY.search(key)) and not _HARMLESS_KEY.match(key)
