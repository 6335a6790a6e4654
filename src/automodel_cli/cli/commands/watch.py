"""``automodel watch`` and ``automodel report``: runs on a page, live or as a file."""

from __future__ import annotations

from automodel_cli.cli import console
from automodel_cli.cli.options import command
from automodel_cli.config.schema.watching import ReportConfig, WatchConfig


@command(
    WatchConfig,
    arguments=("runs",),
    examples=("automodel watch runs", "automodel watch runs/a runs/b --port 8080"),
)
def watch(cfg: WatchConfig) -> None:
    """Show runs on a live page: curves, samples, events, configuration, and how they compare."""
    from automodel_cli.recipes import watch as recipe

    recipe.run(cfg, say=console.say)


@command(
    ReportConfig,
    arguments=("runs",),
    examples=("automodel report runs/a", "automodel report runs/a runs/b -o compared.html --pdf compared.pdf"),
)
def report(cfg: ReportConfig) -> None:
    """Write the page of runs as one file, which any browser opens without a network."""
    from automodel_cli.recipes import report as recipe

    for path in recipe.run(cfg):
        console.say(f"wrote {path}")
