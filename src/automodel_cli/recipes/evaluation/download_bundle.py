"""Fetching the data of the in-context tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.schema.results import BundleConfig
from automodel_cli.evaluation.icl import bundle_archive


@dataclass(frozen=True)
class FetchedBundle:
    """Where the data is, and how many task files it has."""

    folder: Path
    files: int


def run(cfg: BundleConfig, *, reporter: Reporter | None = None) -> FetchedBundle:
    """Fetch and unpack the archive into ``cfg.folder``; see ``evaluation.icl.bundle_archive``."""
    reporter = reporter or Reporter()
    url = cfg.url or bundle_archive.URL
    sha256 = cfg.sha256 or (bundle_archive.SHA256 if cfg.url is None else None)
    if sha256 is None:
        reporter.say(f"no SHA-256 is known of {url}: give it with --bundle-sha256 to have it checked")
    folder = bundle_archive.fetch(
        Path(cfg.folder),
        url=url,
        sha256=sha256,
        progress=lambda done, total: reporter.progress(done, total, "bytes"),
    )
    return FetchedBundle(folder, sum(1 for _ in folder.rglob("*.jsonl")))
