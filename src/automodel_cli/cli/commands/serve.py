"""``automodel serve``: a checkpoint behind an OpenAI-compatible API and a chat page."""

from __future__ import annotations

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import Given, command
from automodel_cli.config.schema.results import TrustOptions
from automodel_cli.config.schema.serving import ServeConfig


@command(
    ServeConfig,
    TrustOptions,
    arguments=("checkpoint",),
    examples=("automodel serve runs/a", "AUTOMODEL_API_KEY=... automodel serve runs/a --host 0.0.0.0 --port 8080"),
)
def serve(given: Given) -> None:
    """Serve a checkpoint: chat page and OpenAI-compatible API."""
    cfg, trust = given.load(ServeConfig), given.values["trust"] or ()
    worker.starting("serve: loading PyTorch ...", needs=cfg.checkpoint)
    from automodel_cli.recipes import serve as recipe

    recipe.run(cfg, say=console.say, trust=trust)
