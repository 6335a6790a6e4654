"""``automodel generate``: a checkpoint continues a prompt, shown as it is made.

What a model writes may hold anything, terminal commands included: control characters are shown as escapes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from automodel_cli.cli import console, worker
from automodel_cli.config.load import load_config
from automodel_cli.config.schema import GenerateConfig
from automodel_cli.plain_text import without_controls


def generate(
    checkpoint: Annotated[
        str | None, typer.Argument(metavar="CKPT", help="Checkpoint, run folder or Hugging Face folder.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Text to continue, or FILE:path (default: a new document)."),
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="File with a prompt on each line; all are continued side by side.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to add at most (default: 100).")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0: the likeliest token each time (default: 0.8).")
    ] = None,
    top_k: Annotated[
        str | None, typer.Option(metavar="N|null", help="Choose among the N likeliest (default: 200).")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among this share of the probability.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: what was there before becomes less likely (default: 1).")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a continuation. May be repeated.")
    ] = None,
    overflow: Annotated[
        str | None,
        typer.Option(
            metavar="slide|stop",
            help="At the end of the context go on from its newest half, or end (default: slide).",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the choice (default: 42).")] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="Continuations of each prompt (default: 1).")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Name or folder (default: the checkpoint's).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Run this file, which built a model of your own.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with these settings.")
    ] = None,
) -> None:
    """Let a checkpoint continue a text."""
    flags = {
        "checkpoint": checkpoint,
        "prompt": prompt,
        "prompt_file": prompt_file,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop) if stop else None,
        "overflow": overflow,
        "seed": seed,
        "num_samples": num_samples,
        "tokenizer": tokenizer,
        "device": device,
    }
    # null is a value here (all tokens), where for the other flags None means "not given"
    overrides = [] if top_k is None else [f"--top_k={top_k}"]
    cfg = load_config(GenerateConfig, config, overrides, flags)

    worker.starting("generate: loading PyTorch ...")
    from automodel_cli.recipes import generate as recipe

    if cfg.num_samples == 1 and cfg.prompt_file is None:
        result = _streamed(cfg, recipe, trust or ())
    else:
        result = recipe.run(cfg, trust=trust or ())
        _show_all(result)
    for note in result.notes:
        console.print_error(note)
    tokens = sum(len(sample.ids) for prompt in result.prompts for sample in prompt.samples)
    console.print_error(f"{tokens} tokens at {result.tokens_per_s:.1f} tokens/s from {result.checkpoint}")


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
