"""Predicted over measured peak memory of a training step, or with --runs of whole runs, for a handful of settings.

Each row is a process of its own: the peak of a CPU process (VmHWM) cannot be reset, and compiled code stays. On a CPU
the prediction includes what the process had before the model was built; on CUDA it is compared with
``torch.cuda.max_memory_allocated``.

A run is all of ``pretrain`` on a CPU: updates, two validations, samples or in-context tasks where the row says so,
and a checkpoint; the prediction is the number of its start-up table. ``plain`` and ``chunked`` are pinned, ``timed`` is
the run's own choice. LD_PRELOAD another allocator to measure with that.

    python benchmarks/memory.py [--quick] [--only WORD] [--device cpu|cuda] [--steps 3] [--runs [--bundle DIR]]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VOCAB = 50304


@dataclass(frozen=True)
class Case:
    """One training step to be measured."""

    model: str
    layers: int
    width: int
    heads: int
    seq_len: int
    rows: int
    precision: str = "bf16"
    head_loss: str = "plain"
    recompute: str | None = None
    compiled: bool = False
    accumulation: int = 1

    def __str__(self) -> str:
        size = f"{self.model} {self.layers}x{self.width} T{self.seq_len} B{self.rows}"
        how = [self.precision, self.head_loss, "compiled" if self.compiled else "eager"]
        how += [self.recompute] if self.recompute else []
        how += [f"x{self.accumulation}"] if self.accumulation > 1 else []
        return f"{size} {' '.join(how)}"


def cpu_cases() -> list[Case]:
    """Small models, every choice once."""
    small, middle = ("gpt2", 4, 256, 4, 256), ("gpt2", 6, 384, 6, 256)
    return [
        Case(*small, 4, "fp32"),
        Case(*small, 4, "bf16"),
        Case(*small, 16, "fp32", "chunked"),
        Case(*small, 16, "bf16", "chunked"),
        Case(*small, 4, "bf16", "chunked", accumulation=2),
        Case(*middle, 4, "fp32"),
        Case(*middle, 4, "bf16", "chunked"),
        Case(*middle, 16, "bf16", "chunked"),
        Case(*middle, 16, "bf16", "chunked", "full"),
        Case(*middle, 16, "bf16", "chunked", "selective"),
        Case(*middle, 16, "fp32", "chunked", "full"),
        Case(*middle, 16, "fp32", "chunked", "selective"),
        Case(*small, 16, "bf16", "chunked", compiled=True),
        Case("llama", 4, 256, 4, 256, 4, "fp32"),
        Case("llama", 4, 256, 4, 256, 16, "bf16", "chunked"),
    ]


def cuda_cases() -> list[Case]:
    """GPT-2 small and medium, and a Llama of 12 layers; compiled as a long run is."""
    small, medium, llama = (
        ("gpt2", 12, 768, 12, 1024),
        ("gpt2", 24, 1024, 16, 1024),
        ("llama", 12, 768, 12, 1024),
    )
    return [
        Case(*small, 16, compiled=True),
        Case(*small, 16, head_loss="chunked", compiled=True),
        Case(*small, 16),
        Case(*medium, 8, head_loss="chunked", recompute="full"),
        Case(*llama, 16, head_loss="chunked", compiled=True),
        Case(*small, 16, head_loss="chunked"),
        Case(*small, 8, "fp32"),
        Case(*small, 16, compiled=True, recompute="full"),
        Case(*small, 16, compiled=True, recompute="selective"),
        Case(*medium, 16, head_loss="chunked", compiled=True),
        Case(*medium, 8, head_loss="chunked", recompute="selective", accumulation=2),
        Case(*llama, 16),
        Case(*llama, 16, compiled=True, recompute="full"),
        Case(*small, 64, compiled=True),
    ]


QUICK_CUDA_CASES = 4
QUICK_CPU_CASES = 4


@dataclass(frozen=True)
class Run:
    """One run to be measured; ``tasks``: none, samples, or names of in-context tasks."""

    layers: int
    width: int
    seq_len: int
    rows: int
    threads: int = 1
    precision: str = "bf16"
    head_loss: str = "timed"
    validates: bool = True
    tasks: str = ""
    is_async: bool = False
    vocab: int = 50257
    accumulation: int = 1

    def __str__(self) -> str:
        size = f"{self.layers}x{self.width} V{self.vocab} T{self.seq_len} B{self.rows} {self.threads} threads"
        how = [self.precision, self.head_loss, "validation" if self.validates else "", self.tasks]
        how += [
            "background save" if self.is_async else "",
            f"x{self.accumulation}" if self.accumulation > 1 else "",
        ]
        return f"{size} {' '.join(filter(None, how))}"


def runs() -> list[Run]:
    """Every path of a run, with one, two and four threads."""
    tiny, small = (2, 64, 128, 4), (4, 256, 256, 4)
    return [
        Run(*tiny, 2),
        Run(*tiny, 2, "fp32", "plain"),
        Run(*tiny, 1, "bf16", "plain"),
        Run(*small, 2, "fp32", "chunked", is_async=True),
        Run(*small, 2, "bf16", tasks="samples"),
        Run(4, 128, 64, 12, 2, "fp32", vocab=65),
        Run(*tiny, 4, "fp32", "plain"),
        Run(2, 64, 128, 1, 2, "fp32", "plain"),
        Run(12, 768, 64, 1, 2, "fp32"),
        Run(*small, 1, "bf16", "plain"),
        Run(*small, 2, "bf16", "chunked", accumulation=2),
        Run(*tiny, 2, "fp32", "plain", validates=False),
        Run(*tiny, 1, "fp32", "chunked"),
    ]


def task_runs() -> list[Run]:
    """With in-context tasks, for ``--bundle``."""
    return [
        Run(2, 64, 1024, 1, 2, "fp32", tasks="copa,lambada_openai,jeopardy"),
        Run(4, 256, 1024, 1, 1, "bf16", tasks="copa,lambada_openai,jeopardy"),
    ]


def measure_run(run: Run, bundle: str | None, updates: int) -> dict[str, Any]:
    """Predict and train, as ``automodel pretrain`` does, and look at the peak."""
    from automodel_cli import device as this_machine

    this_machine.prefer_huge_pages()
    import tempfile

    from automodel_cli.assembly.reporter import Reporter
    from automodel_cli.config.load import load_config
    from automodel_cli.config.schema.pretrain import PretrainConfig
    from automodel_cli.recipes.pretrain import PretrainRecipe

    with tempfile.TemporaryDirectory() as folder:
        train, held_out = write_tokens(Path(folder), run.vocab)
        overrides = overrides_of(run, train, held_out, f"{folder}/run", bundle, updates)
        recipe = PretrainRecipe(load_config(PretrainConfig, None, overrides, {}), reporter=Reporter())
        recipe.setup()
        recipe.run_train_validation_loop()
    assert recipe.peak is not None
    return {
        "predicted": recipe.peak.total,
        "measured": highest_resident_bytes(),
        "resident": recipe.peak.process,
        "moment": recipe.peak.moment,
        "parts": recipe.peak.parts(),
        "loss": recipe.fast_path.head_loss,
    }


def write_tokens(folder: Path, vocab: int) -> tuple[Path, Path]:
    """Random tokens to train on and to validate with: a tenth of them."""
    import numpy as np

    from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter

    paths = folder / "train.bin", folder / "val.bin"
    for path, count in zip(paths, (300_000, 30_000), strict=True):
        writer = ShardWriter(path, dtype=np.dtype("uint16"))
        writer.write(np.random.default_rng(0).integers(0, vocab, count).astype("<u2"), np.arange(0, count, 1000))
        writer.close()
    return paths


def overrides_of(run: Run, train: Path, held_out: Path, folder: str, bundle: str | None, updates: int) -> list[str]:
    """The configuration of a run."""
    shape = {
        "vocab_size": run.vocab,
        "n_positions": max(run.seq_len, 128),
        "n_embd": run.width,
        "n_layer": run.layers,
    }
    dataset = "automodel_cli.data.nanogpt_dataset.NanogptDataset"
    loss = {"plain": "torch.nn.CrossEntropyLoss", "chunked": "automodel_cli.train.losses.ChunkedCrossEntropy"}
    found = [
        "model._target_=automodel_cli.models.gpt2.build_gpt2_model",
        *(f"model.{key}={value}" for key, value in shape.items()),
        "model.n_head=4",
        f"dataset._target_={dataset}",
        f"dataset.file_pattern={train}",
        f"dataset.seq_len={run.seq_len}",
        f"step_scheduler.global_batch_size={run.rows * run.accumulation}",
        f"step_scheduler.local_batch_size={run.rows}",
        f"step_scheduler.max_steps={updates}",
        "step_scheduler.val_every_steps=2",
        "step_scheduler.limit_val_batches=20",
        f"precision={run.precision}",
        "compile=false",
        f"checkpoint.checkpoint_dir={folder}",
        f"checkpoint.is_async={str(run.is_async).lower()}",
    ]
    if run.head_loss in loss:
        found.append(f"loss_fn._target_={loss[run.head_loss]}")
    if run.validates:
        found += [
            f"validation_dataset.{line.removeprefix('dataset.')}" for line in found if line.startswith("dataset.")
        ]
        found.append(f"validation_dataset.file_pattern={held_out}")
    if run.tasks and run.tasks != "samples":
        found += [
            f"evaluation.tasks={run.tasks}",
            f"evaluation.bundle={bundle}",
            "evaluation.max_per_task=20",
        ]
    if run.tasks:
        found += ["tokenizer=gpt2", "evaluation.every_steps=2", "evaluation.prompts=['To be, or not to be']"]
    return found


def measure(case: Case, device_name: str, steps: int) -> dict[str, Any]:
    """Predict, train ``steps`` updates, and look at the peak."""
    import torch

    from automodel_cli import device as this_machine
    from automodel_cli.batch import Batch
    from automodel_cli.distributed.recompute import recompute
    from automodel_cli.sizing.memory import StepPlan, peak_memory
    from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy, default_chunk_tokens
    from automodel_cli.train.optimizers import build_adamw
    from automodel_cli.train.step import train_step

    device = torch.device(device_name)
    if case.model == "llama":
        import transformers  # noqa: F401  before the process is measured
    this_machine.configure_process(device)
    resident = this_machine.resident_bytes() if device.type == "cpu" else 0
    model = build(case)
    plan = StepPlan(
        seq_len=case.seq_len,
        local_batch_size=case.rows,
        precision=case.precision,
        compiled=case.compiled,
        head_loss=case.head_loss,
        chunk_tokens=default_chunk_tokens(VOCAB, device.type),
        recompute=case.recompute,
        attention=attention_of(case, device.type),
        accumulates=case.accumulation > 1,
        device=device.type,
        resident_bytes=resident or 0,
    )
    shape = model.shape()
    assert shape is not None
    predicted = peak_memory(shape, plan)
    assert predicted is not None

    model.materialize(device, 0)
    for block in model.blocks() if case.recompute else []:
        recompute(block, case.recompute, random=False)
    optimizer = build_adamw(model.parameters(), device=device)
    loss = ChunkedCrossEntropy() if case.head_loss == "chunked" else MaskedCrossEntropy()
    if case.compiled:
        model.compile(dynamic=False)
    dtype = torch.bfloat16 if case.precision == "bf16" else None
    for _ in range(steps):
        batches = []
        for _ in range(case.accumulation):
            ids = torch.randint(0, VOCAB, (case.rows, case.seq_len + 1))
            batches.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).to(device))
        train_step(model, loss, optimizer, batches, autocast_dtype=dtype).loss.item()
    measured = torch.cuda.max_memory_allocated() if device.type == "cuda" else highest_resident_bytes()
    return {
        "predicted": predicted.total,
        "measured": measured,
        "resident": resident,
        "moment": predicted.moment,
        "parts": predicted.parts(),
    }


def build(case: Case) -> Any:
    """The model of a case, on the meta device."""
    if case.model == "gpt2":
        from automodel_cli.models.gpt2 import build_gpt2_model

        return build_gpt2_model(
            vocab_size=VOCAB,
            n_positions=case.seq_len,
            n_embd=case.width,
            n_layer=case.layers,
            n_head=case.heads,
            is_meta_device=True,
        )
    import transformers

    from automodel_cli.models.hf import from_config

    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=case.width,
        intermediate_size=8 * case.width // 3,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads // 2,
        max_position_embeddings=case.seq_len,
    )
    return from_config(config, is_meta_device=True)


def attention_of(case: Case, device_type: str) -> str:
    """``attend_auto`` multiplies matrices on a CPU in bf16; everything else here is SDPA."""
    plain = case.model == "gpt2" and device_type == "cpu" and case.precision == "bf16" and case.seq_len <= 1024
    return "matmul" if plain else "linear"


def highest_resident_bytes() -> int:
    """VmHWM of this process. Not ``ru_maxrss``, which starts with the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows only")
    parser.add_argument("--only", default="", help="rows whose line contains this")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--runs", action="store_true", help="whole runs on a CPU instead of training steps")
    parser.add_argument("--bundle", help="with --runs: folder of in-context tasks")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case and arguments.runs:
        print(json.dumps(measure_run(Run(**json.loads(arguments.case)), arguments.bundle, arguments.steps)))
        return
    if arguments.case:
        case = Case(**json.loads(arguments.case))
        print(json.dumps(measure(case, arguments.device, arguments.steps)))
        return
    extra = ["--runs"] if arguments.runs else []
    extra += ["--bundle", arguments.bundle] if arguments.bundle else []
    device = "cpu" if arguments.runs else arguments.device or default_device()
    cases: list[Any]
    cases, quick = (cuda_cases(), QUICK_CUDA_CASES) if device == "cuda" else (cpu_cases(), QUICK_CPU_CASES)
    if arguments.runs:
        cases = runs() + (task_runs() if arguments.bundle else [])
    cases = cases[:quick] if arguments.quick else cases
    ratios = [
        ratio
        for case in cases
        if arguments.only in str(case) and (ratio := row(case, device, arguments.steps, extra)) is not None
    ]
    print(f"{len(ratios)} rows, predicted/measured from {min(ratios):.3f} to {max(ratios):.3f}")


def row(case: Case | Run, device: str, steps: int, extra: list[str]) -> float | None:
    """Measure in a process of its own, print a line, return the ratio; None where it failed."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--device", device, *extra]
    threads = {"OMP_NUM_THREADS": str(case.threads)} if isinstance(case, Run) else {}
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | threads,
    )
    if done.returncode:
        print(f"{case}: failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", flush=True)
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    ratio = found["predicted"] / found["measured"]
    parts = ", ".join(f"{name} {size >> 20}" for name, size in found["parts"].items())
    print(
        f"{ratio:5.3f} = {found['predicted'] >> 20:6d} / {found['measured'] >> 20:6d} MiB  {case}"
        f"  ({found['moment']}: {parts})",
        flush=True,
    )
    return ratio


def default_device() -> str:
    """cuda where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
