"""Settings of the commands that show runs: watch and report."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from automodel_cli.config.schema.base import Count, Section
from automodel_cli.config.schema.serving import Port


class WatchConfig(Section):
    """Settings of `automodel watch`."""

    panels: ClassVar = {"Server": "host port api_key allowed_hosts max_connections"}

    runs: tuple[str, ...] = Field(min_length=1)
    """Run folders, and folders with runs in them, up to three levels deep; runs that begin later appear by
    themselves."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything beyond this machine needs an `api_key`."""
    port: Port = 8004
    """Port of the page; 0: any that is free."""
    api_key: str | None = None
    """What the page asks for before it shows anything; null: `AUTOMODEL_API_KEY` from the environment, else none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that browsers may call this server; empty: those of this machine, and any where it listens beyond that."""
    max_connections: Count = 500
    """Connections that may be open at once (a page keeps one); more are refused (status 503)."""


class ReportConfig(Section):
    """Settings of `automodel report`."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Run folders, and folders with runs in them."""
    output: str | None = None
    """File to write, .html; null: `report.html` in the first folder."""
    png: str | None = None
    """A picture of it as well, .png, where Chromium or Chrome is installed; null: none."""
    pdf: str | None = None
    """It on paper as well, .pdf, where Chromium or Chrome is installed; null: none."""
    title: str | None = None
    """Title of the page; null: the names of the runs."""
