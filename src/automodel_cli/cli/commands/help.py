"""``automodel help`` and ``automodel explain``: pages about commands, launch flags, and keys of configurations."""

from __future__ import annotations

from automodel_cli.cli import app, console, help_page
from automodel_cli.cli.argv import LAUNCH_FLAGS
from automodel_cli.cli.options import command
from automodel_cli.config import lookup
from automodel_cli.config.other_names import counterpart
from automodel_cli.config.schema.options import ExplainOptions, HelpOptions
from automodel_cli.errors import ConfigError

_LAUNCH = "launch"


@command(
    HelpOptions,
    file=False,
    arguments=("words",),
    examples=("automodel help preprocess nanogpt", "automodel help launch"),
)
def show_help(cfg: HelpOptions) -> int:
    """Show the help of a command, as its --help does, or (launch) of the flags that start several processes."""
    if cfg.words == (_LAUNCH,):
        print(launch_page(), flush=True)
        return 0
    return app.run([*cfg.words, "--help"])


def launch_page() -> str:
    """torchrun's flags with their defaults."""
    from automodel_cli.launch.plan import DEFAULTS

    rows = [
        (f"--{flag} {value}", f"{text}. [default: {DEFAULTS[flag]}]") for flag, (value, text) in LAUNCH_FLAGS.items()
    ]
    rows.append(("--standalone", "One machine, whatever else is set."))
    return help_page.page(
        "automodel pretrain llm -c FILE [LAUNCH FLAGS] ...",
        """Several processes for pretrain, and for eval with --tasks or --harness. The flags are torchrun's and may be
        given anywhere in the line, with dashes or underscores.

        On one machine --nproc-per-node is enough. On several machines, run the same line on each, with --nnodes and
        --rdzv-endpoint. Under torchrun or srun no launch flags are needed.""",
        (
            "automodel pretrain llm -c cfg.yaml --nproc-per-node 8",
            "automodel pretrain llm -c cfg.yaml --nproc-per-node 8 --nnodes 2 --rdzv-endpoint host1:29400",
        ),
        [("Launch flags", rows)],
        "",
    )


@command(
    ExplainOptions,
    file=False,
    settings={"ignore_unknown_options": True},  # --step_scheduler.max_steps, as pasted from a command line
    arguments=("key",),
    examples=("automodel explain step_scheduler.max_steps", "automodel explain val_tokens"),
)
def explain(cfg: ExplainOptions) -> int:
    """Explain a configuration key: what it takes, its default, what it means, and where it belongs.

    Keys of all commands are known, in full (optimizer.lr) or by their last part (lr).
    """
    found = lookup.find(cfg.key)
    if not found:
        if other := counterpart(cfg.key.removeprefix("--")):
            raise ConfigError(f"{cfg.key}: {other}")
        near = lookup.near(cfg.key)
        raise ConfigError(
            f"there is no key {cfg.key}",
            f"did you mean {', '.join(near)}?" if near else "see docs/config.md for all keys",
        )
    for setting in found:
        rows = [(name, getattr(setting, name)) for name in ("takes", "default", "meaning", "where")]
        rows.append(("also spelled", ", ".join(setting.also)))
        console.facts(setting.key, [(name, value) for name, value in rows if value])
    return 0
