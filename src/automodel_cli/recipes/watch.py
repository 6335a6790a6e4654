"""A live page of runs: follow their logs, listen, until a signal comes. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automodel_cli.assembly.run_plan import plan_of
from automodel_cli.config.schema.watching import WatchConfig
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.serving.watch.hub import Hub
from automodel_cli.serving.watch.runs import RunSet
from automodel_cli.text import plural


def run(cfg: WatchConfig, *, say: Callable[[str], None], opened: Callable[[str], Any] | None = None) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        opened: called with the address of the page once it can be used.

    Raises:
        ConfigError: packages are missing, the address cannot be had, or it is not this machine's own and has no key.
        DataError: a folder does not exist.
    """
    try:
        from automodel_cli.serving.watch import app
        from automodel_cli.serving.web import listening
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", "pip install 'automodel-cli[web]'") from error
    folders = [Path(run) for run in cfg.runs]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder", "name run folders, or a folder with runs in it")
    key = cfg.api_key or os.environ.get(listening.API_KEY_VARIABLE) or None
    rules = listening.rules_for(cfg.host, key, cfg.allowed_hosts, open_paths=app.OPEN_PATHS)
    with listening.open_listener(cfg.host, cfg.port) as listener:
        hub = Hub(RunSet(folders, plan_of)).start()
        try:
            address = listening.address_of(cfg.host, listener)
            found = plural(len(hub.runs), "run") if len(hub.runs) else "no run yet, one will be shown when it begins"
            say(f"{address}: {found}")
            if opened is not None:
                opened(address)
            listening.serve_app(
                lambda server: app.make_app(hub, is_stopping=lambda: server().should_exit),
                rules,
                host=cfg.host,
                port=cfg.port,
                max_connections=cfg.max_connections,
            ).run(sockets=[listener])
        finally:
            hub.stop()
