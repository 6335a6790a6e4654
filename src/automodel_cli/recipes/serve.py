"""Serving a checkpoint over HTTP: load it, listen, until a signal comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from automodel_cli.assembly.answering import open_service
from automodel_cli.config.schema.serving import ServeConfig
from automodel_cli.errors import ConfigError


def run(
    cfg: ServeConfig,
    *,
    say: Callable[[str], None],
    trust: Sequence[str] = (),
    opened: Callable[[str], Any] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        opened: called with the address of the page once it can be used.

    Raises:
        ConfigError: packages are missing, the address cannot be had, or it is not this machine's own and has no key.
    """
    try:
        from automodel_cli.serving.web import listening, server
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", "pip install 'automodel-cli[web]'") from error
    key = cfg.api_key or os.environ.get(listening.API_KEY_VARIABLE) or None
    rules = listening.rules_for(cfg.host, key, cfg.allowed_hosts, max_body_bytes=cfg.max_body_bytes)
    with (
        listening.open_listener(cfg.host, cfg.port) as listener,
        open_service(
            cfg, trust=trust, name=cfg.name, max_rows=cfg.max_rows, max_waiting=cfg.max_waiting, timeout_s=cfg.timeout_s
        ) as (service, notes),
    ):
        for note in notes:
            say(note)
        address = listening.address_of(cfg.host, listener)
        say(f"{service.name} ({'chat' if service.chat else 'plain text'}): page {address}, OpenAI API {address}/v1")
        if opened is not None:
            opened(address)
        server.make_server(service, rules, max_tokens=cfg.request_tokens, max_connections=cfg.max_connections).run(
            sockets=[listener]
        )
