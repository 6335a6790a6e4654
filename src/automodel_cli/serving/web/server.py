"""The server of a checkpoint."""

from __future__ import annotations

import uvicorn

from automodel_cli.serving.service import Service
from automodel_cli.serving.web.app import make_app
from automodel_cli.serving.web.guard import Rules
from automodel_cli.serving.web.listening import HEADER_TIMEOUT_S, serve_app


def make_server(
    service: Service,
    rules: Rules,
    *,
    host: str = "127.0.0.1",
    port: int = 8003,
    max_tokens: int = 4096,
    max_connections: int = 1000,
    header_timeout_s: float = HEADER_TIMEOUT_S,
) -> uvicorn.Server:
    """A server that has not begun; ``run()`` lasts until a signal comes."""
    return serve_app(
        lambda server: make_app(
            service, max_tokens=max_tokens, connections=lambda: len(server().server_state.connections)
        ),
        rules,
        host=host,
        port=port,
        max_connections=max_connections,
        header_timeout_s=header_timeout_s,
    )
