"""What `automodel export` reads."""

from __future__ import annotations

from automodel_cli.config.schema.base import Section


class ExportConfig(Section):
    """What `automodel export hf` reads."""

    checkpoint: str
    """Checkpoint or run folder (its LATEST is taken); by however many processes it was written."""
    output: str
    """Folder to make; it must not exist."""
