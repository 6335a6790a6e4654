"""``automodel export hf``: a checkpoint as a folder that transformers loads, and on to the Hub where that is wanted.

One process on one machine, without a device: shards are read and written one tensor at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from automodel_cli.assembly.hub.model_card import CARD, model_card
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.hf import hub
from automodel_cli.checkpoint.imports import trainers as imports
from automodel_cli.checkpoint.inspect import verify
from automodel_cli.checkpoint.inspect.describe import folder_bytes
from automodel_cli.checkpoint.layout import Say
from automodel_cli.config.schema.results import ExportConfig
from automodel_cli.errors import CheckpointError


@dataclass(frozen=True)
class ExportResult:
    """What was made of which checkpoint."""

    checkpoint: Path
    folder: Path
    num_bytes: int


def run(cfg: ExportConfig, *, progress: hf_export.Progress | None = None, say: Say | None = None) -> ExportResult:
    """Write the model of a checkpoint, and its tokenizer, as a Hugging Face folder.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, its weights are no numbers, its model has no such
            format, or the folder exists.
        HubError: it is to be uploaded, and there is no token for that.
    """
    if cfg.push_to_hub is not None and (why := hub.why_not_now()) is not None:
        raise hub.HubError(f"nothing can be uploaded to {cfg.push_to_hub}: {why}", "or leave out --push-to-hub")
    step = layout.checkpoint_at(cfg.checkpoint)
    if step is None:
        raise _not_a_checkpoint(Path(cfg.checkpoint))
    verify.refuse_nonfinite(step)
    card = model_card(step, repo_id=cfg.push_to_hub, license=cfg.license, averaged=cfg.ema)
    folder = hf_export.export(step, Path(cfg.output), more={CARD: card}, averaged=cfg.ema, progress=progress, say=say)
    return ExportResult(step, folder, folder_bytes(folder))


def push(cfg: ExportConfig, result: ExportResult, *, say: Say) -> str | None:
    """Upload what :func:`run` wrote where the settings name a repository; its address.

    Raises:
        HubError: it did not get there; the folder stays.
    """
    if cfg.push_to_hub is None:
        return None
    to = hub.Destination(cfg.push_to_hub, cfg.private, cfg.revision)
    say(f"uploading {result.folder} to {to.describe()}")
    return hub.push(result.folder, to, message=f"automodel: {result.checkpoint.name}")


def _not_a_checkpoint(path: Path) -> CheckpointError:
    if (path / "config.json").is_file():
        return CheckpointError(f"{path} is a Hugging Face folder already", "transformers loads it as it is")
    if imports.trainer_of(path) is not None:
        return hf_format.nothing_to_load(path)
    return CheckpointError(
        f"{path} is neither a checkpoint nor a run folder",
        "name a run folder, or one of its steps; automodel inspect-ckpt shows what there is",
    )
