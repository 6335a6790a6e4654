"""``automodel preprocess index``: the sample indices of a pretraining run, built ahead of the job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.pretrain import config_file
from automodel_cli.config.instantiate import check_foreign
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.errors import ConfigError

if TYPE_CHECKING:
    from automodel_cli.recipes.index import Indexed

TAKES_OVERRIDES = {
    "help_option_names": ["-h", "--help"],
    "allow_extra_args": True,
    "ignore_unknown_options": True,
}
USAGE = "-c FILE [OPTIONS] [--section.key VALUE | section.key=VALUE]..."
EPILOG = (
    "Give the file and the overrides that automodel pretrain llm will be given: what an index holds depends on "
    "seq_length, split, seed, max_steps and global_batch_size."
)


def index(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of the run.", show_default=False)
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Admit code of your own (my_module, path/file.py). May be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build the sample indices that a run on Megatron files needs, before the job and without its GPUs.

    What is there and right is left alone; the run then starts at once on every rank.
    """
    config, overrides = config_file(config, list(context.args))
    if config is None and not overrides:
        raise ConfigError("no configuration given", "automodel preprocess index -c cfg.yaml")
    cfg = load_config(PretrainConfig, config, overrides, trust=trust or ())
    check_foreign(cfg, trust=trust or ())

    worker.starting("preprocess index: loading PyTorch ...")
    from automodel_cli.recipes import index as recipe

    with console.voice("indices") as voice:
        results = recipe.run(cfg, trust=tuple(trust or ()), voice=voice)
    for result in results:
        console.say(line_of(result))


def line_of(result: Indexed) -> str:
    """What became of one data section."""
    if result.folder is None:
        return f"{result.section}: needs no index"
    took = f" in {result.seconds:.1f} s" if result.built else ""
    return (
        f"{result.section}: {result.built:,} built{took}, {result.found:,} there already, in {result.folder}"
    )
