"""Serving a checkpoint over HTTP: load it, listen, until a signal comes."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from automodel_cli.assembly.answering import open_service
from automodel_cli.config.schema.serving import ServeConfig
from automodel_cli.errors import ConfigError

API_KEY_VARIABLE = "AUTOMODEL_API_KEY"


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
        from automodel_cli.serving.web import guard, server
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", "pip install 'automodel-cli[web]'") from error
    key = cfg.api_key or os.environ.get(API_KEY_VARIABLE) or None
    is_local = _is_loopback(cfg.host)
    if key is None and not is_local:
        raise ConfigError(
            f"host {cfg.host} can be reached from other machines, and there is no API key",
            f"set {API_KEY_VARIABLE} or --api-key, or listen on 127.0.0.1",
        )
    hosts = frozenset(host.lower() for host in cfg.allowed_hosts)
    hosts |= guard.LOOPBACK_NAMES if is_local or hosts else frozenset()
    rules = guard.Rules(hosts=hosts or None, key=key, max_body_bytes=cfg.max_body_bytes)
    with (
        _listener(cfg.host, cfg.port) as listener,
        open_service(
            cfg, trust=trust, name=cfg.name, max_rows=cfg.max_rows, max_waiting=cfg.max_waiting, timeout_s=cfg.timeout_s
        ) as (service, notes),
    ):
        for note in notes:
            say(note)
        host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        say(f"{service.name} ({'chat' if service.chat else 'plain text'}): page {address}, OpenAI API {address}/v1")
        if opened is not None:
            opened(address)
        server.make_server(service, rules, max_tokens=cfg.request_tokens, max_connections=cfg.max_connections).run(
            sockets=[listener]
        )


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens: clients wait until the model is loaded, and a port in use is found before that."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", "choose another --port or --host"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
