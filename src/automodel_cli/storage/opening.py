"""The store of a URL, opened when it is first needed: clients are imported only where a URL is used."""

from __future__ import annotations

import functools
import os

from automodel_cli.errors import ConfigError
from automodel_cli.storage.store import Store
from automodel_cli.storage.urls import split_url


def open_store(url: str) -> Store:
    """The store of a URL's place, one object for a place and process; nothing is asked of it yet.

    Raises:
        ConfigError: the scheme is not known, or the package that reads it is not installed.
    """
    address = split_url(url)
    return _open(address.scheme, address.place, os.getpid())


@functools.lru_cache(maxsize=64)
def _open(scheme: str, place: str, process: int) -> Store:
    """``process``: connections and threads do not survive a fork."""
    try:
        if scheme == "file":
            from automodel_cli.storage.local import LocalStore

            return LocalStore()
        if scheme == "hf":
            from automodel_cli.storage.hub import HubStore

            return HubStore(place)
        from automodel_cli.storage.objects import open_bucket

        return open_bucket(scheme, place)
    except ImportError as error:
        if error.name is None or error.name.startswith("automodel_cli"):
            raise
        extra = {"s3": "s3", "gs": "gcs", "az": "azure"}.get(scheme, "hub")
        raise ConfigError(
            f"{scheme}:// needs the package {error.name}, which is not installed",
            f"pip install 'automodel-cli[{extra}]'",
        ) from None
