"""``automodel export hf CKPT OUT`` and ``export gguf CKPT OUT.gguf``: for transformers, or for llama.cpp."""

from __future__ import annotations

from automodel_cli.cli import console, worker
from automodel_cli.cli.options import command
from automodel_cli.config.schema.results import ExportConfig, ExportGGUFConfig
from automodel_cli.text import binary_size


@command(
    ExportConfig,
    arguments=("checkpoint", "output"),
    examples=(
        "automodel export hf runs/a exported",
        "automodel export hf runs/a/step_00001000 exported --push-to-hub me/gpt --private",
    ),
)
def hf(cfg: ExportConfig) -> None:
    """Write config, tokenizer and safetensors that transformers loads; a few tensors in memory at a time."""
    worker.starting("export hf: loading PyTorch ...", needs=cfg.checkpoint)
    from automodel_cli.recipes import export as recipe

    with console.Progress("checking", unit="files") as progress:
        result = recipe.run(cfg, progress=progress, say=console.say)
    console.say(f"{result.folder}: {binary_size(result.num_bytes)} from {result.checkpoint}")
    if (address := recipe.push(cfg, result, say=console.say)) is not None:
        console.say(f"uploaded to {address}")


@command(
    ExportGGUFConfig,
    arguments=("checkpoint", "output_file"),
    examples=("automodel export gguf runs/a model.gguf", "automodel export gguf runs/a small.gguf --type q8_0"),
)
def gguf(cfg: ExportGGUFConfig) -> None:
    """Write weights and tokenizer into one file for llama.cpp and Ollama; one tensor in memory at a time."""
    worker.starting("export gguf: loading PyTorch ...", needs=cfg.checkpoint)
    from automodel_cli.recipes import export_gguf as recipe

    with console.Progress("writing", shows_numbers=False) as progress:
        result = recipe.run(cfg, progress=progress, say=console.say)
    console.say(f"{result.file}: {binary_size(result.num_bytes)} from {result.source}, for llama.cpp ({result.model})")
    console.say(f"{result.modelfile}: ollama create NAME -f {result.modelfile.name}")
