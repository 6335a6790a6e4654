"""``automodel generate``: text from a checkpoint, shown as it is made.

What a model writes may hold anything, terminal commands included: control characters are shown as escapes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import Given, command
from automodel_cli.config.schema.results import GenerateConfig, TrustOptions
from automodel_cli.plain_text import without_controls
from automodel_cli.text import plural


@command(
    GenerateConfig,
    TrustOptions,
    arguments=("checkpoint",),
    examples=(
        "automodel generate runs/a --prompt 'Once upon a time'",
        "automodel generate runs/a --prompt-file prompts.txt --num-samples 3 --temperature 0",
    ),
)
def generate(given: Given) -> None:
    """Generate text that continues a prompt."""
    cfg, trust = given.load(GenerateConfig), given.values["trust"] or ()
    worker.starting("generate: loading PyTorch ...", needs=cfg.checkpoint)
    from automodel_cli.recipes import generate as recipe

    if cfg.num_samples == 1 and cfg.prompt_file is None:
        result = _streamed(cfg, recipe, trust)
    else:
        result = recipe.run(cfg, trust=trust)
        _show_all(result)
    for note in result.notes:
        console.print_error(note)
    tokens = sum(len(sample.ids) for prompt in result.prompts for sample in prompt.samples)
    speed = f"{result.tokens_per_s:.1f} tokens/s"
    console.print_error(f"{plural(tokens, 'token')} at {speed} from {result.checkpoint}")


def _streamed(cfg: GenerateConfig, recipe: Any, trust: Sequence[str]) -> Any:
    """Show the one continuation as it is made, behind its prompt."""
    # The prompt is shown with the first piece of text, so that an error before it stands alone.
    unseen = recipe.read_prompts(cfg)

    def show(_: int, piece: str) -> None:
        write("".join(unseen) + piece)
        unseen.clear()

    result = recipe.run(cfg, on_text=show, trust=trust)
    write("".join(unseen) + "\n")
    return result


def _show_all(result: Any) -> None:
    several = len(result.prompts) > 1
    for number, prompt in enumerate(result.prompts, start=1):
        for place, sample in enumerate(prompt.samples, start=1):
            which = f"prompt {number} of {len(result.prompts)}, " if several else ""
            write(f"--- {which}sample {place} of {len(prompt.samples)} ---\n{prompt.prompt}{sample.text}\n")


def write(text: str) -> None:
    """Show a piece of text at once, safe for a terminal and for its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = without_controls(text).encode(encoding, errors="backslashreplace").decode(encoding)
    typer.echo(shown, nl=False)
    sys.stdout.flush()
