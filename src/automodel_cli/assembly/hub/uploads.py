"""``checkpoint.push_to_hub``: where the checkpoints of a run go beside the run folder, said before they do."""

from __future__ import annotations

from pathlib import Path

from automodel_cli.assembly.hub.model_card import CARD, model_card
from automodel_cli.assembly.reporter import Rows
from automodel_cli.checkpoint.hf.export import has_format, why_not
from automodel_cli.checkpoint.hf.hub import Destination, why_not_now
from automodel_cli.checkpoint.hf.uploads import Uploads
from automodel_cli.checkpoint.layout import Say
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import CausalLM

_WHICH = {"last": "the last checkpoint", "best": "each best checkpoint so far", "all": "every checkpoint"}


def _destination(cfg: PretrainConfig) -> Destination | None:
    wanted = cfg.checkpoint.push_to_hub
    return None if wanted is None else Destination(wanted.repo_id, wanted.private, wanted.revision)


def check_upload(cfg: PretrainConfig, model: CausalLM) -> None:
    """Check that the checkpoints of ``model`` are such as the Hub is for.

    Raises:
        ConfigError: they are not.
    """
    if cfg.checkpoint.push_to_hub is not None and not has_format(model):
        raise ConfigError(f"checkpoint.push_to_hub: {why_not(model)}", "leave it out")


def rows(cfg: PretrainConfig) -> Rows:
    """What of the run leaves this machine, and where it goes."""
    to, wanted = _destination(cfg), cfg.checkpoint.push_to_hub
    return [("upload", f"{_WHICH[wanted.every]}, to {to.describe()}")] if to is not None and wanted is not None else []


def notes(cfg: PretrainConfig) -> list[str]:
    """Why the upload will fail, as far as that shows by now."""
    why = why_not_now() if cfg.checkpoint.push_to_hub is not None else None
    return [f"checkpoint.push_to_hub will upload nothing: {why}"] if why else []


def build_uploads(cfg: PretrainConfig, run_folder: Path, world: World, say: Say) -> Uploads | None:
    """The uploads of this run; None where there are none, and on all ranks but the first."""
    to, wanted = _destination(cfg), cfg.checkpoint.push_to_hub
    if to is None or wanted is None or not world.is_main:
        return None
    return Uploads(
        run_folder,
        to,
        more=lambda step: {CARD: model_card(step, repo_id=to.repo_id, license=wanted.license)},
        say=say,
    )
