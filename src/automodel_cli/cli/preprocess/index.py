"""``automodel preprocess index``: the sample indices of a pretraining run, built ahead of the job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.commands.pretrain import config_file
from automodel_cli.cli.options import command
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import RunOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import check_foreign
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.recipes.preprocess.index import Indexed


@command(
    RunOptions,
    file=False,
    overrides=True,
    usage="-c FILE [OPTIONS] [--section.key VALUE | section.key=VALUE]...",
    examples=("automodel preprocess index -c cfg.yaml --step_scheduler.max_steps 1000",),
    epilog="Give the file and the overrides that automodel pretrain llm will be given: what an index holds depends on "
    "seq_length, split, seed, max_steps and global_batch_size.",
)
def index(cfg: RunOptions, context: typer.Context) -> None:
    """Build the sample indices that a run on Megatron files needs, before the job and without its GPUs.

    What is there and right is left alone; the run then starts at once on every rank.
    """
    trust = cfg.trust
    config, overrides = config_file(cfg.config, list(context.args))
    if config is None and not overrides:
        raise ConfigError("no configuration given", "automodel preprocess index -c cfg.yaml")
    run = load_config(PretrainConfig, config, overrides, trust=trust)
    check_foreign(run, trust=trust)

    worker.starting("preprocess index: loading PyTorch ...")
    from automodel_cli.recipes.preprocess import index as recipe

    with console.reporter("indices") as reporter:
        results = recipe.run(run, trust=trust, reporter=reporter)
    for result in results:
        console.say(line_of(result))


def line_of(result: Indexed) -> str:
    """What became of one data section."""
    if result.folder is None:
        return f"{result.section}: needs no index"
    took = f" in {result.seconds:.1f} s" if result.built else ""
    return f"{result.section}: {result.built:,} built{took}, {result.found:,} there already, in {result.folder}"
