"""Training on one GPU: tokens per second, MFU, memory, what the recipe costs, and the time to the first update.

Every variant is a process of its own that builds, compiles and warms up beside the others; then the parent lets one
at a time work, in turn, round after round, so that a card whose speed drifts hurts all alike. Reference loops are
written here in the style of their tools with the settings that these publish. Data is generated. Groups of variants:

    speed   GPT-2 124M, T 1024, bf16: ours against a compiled loop in nanoGPT's style; losses; memory. A Llama of 1.1B,
            T 2048: transformers' class and ours in our step, against a loop in HF Trainer's style
    sizes   350M, 774M, 1.5B, T 1024: MFU; the recipe with its log, norm and background checkpoints against a bare loop
    start   time to the end of the first update, with an empty and with a filled compile cache
    data    the recipe on real data against one batch that stays on the device

    python benchmarks/gpu.py [--minutes 8] [--groups speed,sizes,...] [--json FILE]

It needs PyTorch, numpy and transformers; what concerns the recipe also pydantic and PyYAML, and is left out without. A
group that would not end in time is left out, and says so. ``--smoke`` runs tiny models of each kind on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from automodel_cli import device as this_machine
from automodel_cli.batch import Batch
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.layers import attention_kernels
from automodel_cli.sizing import shape as sizing
from automodel_cli.sizing.memory import StepPlan, peak_memory
from automodel_cli.train.loss_choice import pick_loss
from automodel_cli.train.losses import (
    ChunkedCrossEntropy,
    MaskedCrossEntropy,
    default_chunk_tokens,
)
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.step import train_step
from reference_loops import ReferenceGPT

VOCAB, LR, WEIGHT_DECAY, CLIP, BETAS = 50304, 1e-4, 0.1, 1.0, (0.9, 0.95)
STREAM_TOKENS = 24_000_000
PEAK_BF16 = "bf16"

# layers, heads, width
GPT2_SIZES = {"124M": (12, 12, 768), "350M": (24, 16, 1024), "774M": (36, 20, 1280), "1.5B": (48, 25, 1600)}
SMOKE_SIZES = dict.fromkeys(GPT2_SIZES, (2, 2, 64))
# TinyLlama's shape, 1.1 billion parameters
LLAMA = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
SMOKE_LLAMA = {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to train one model.

    Attributes:
        style: ours, ours-hf, ours-llama, nanogpt, hf-trainer, recipe, bare.
        accum: micro-batches of an update when speed is measured.
        residual, loss, scope, attention, compile: choices of ours; None: what the toolkit picks. ``loss`` may carry a
            number of tokens: ``chunked:8192``.
        data: real, or fixed: one batch that stays on the device.
    """

    name: str
    style: str
    size: str = "124M"
    rows: int = 32
    seq_len: int = 1024
    accum: int = 1
    residual: str | None = None
    loss: str | None = None
    scope: str | None = None
    attention: str | None = None
    compile: bool = True
    fp8: bool = False
    data: str = "real"
    logging: bool = False
    smoke: bool = False
    folder: str = ""


# ------------------------------------------------------------------------------------------------ data


def write_stream(path: Path, tokens: int) -> None:
    """Learnable tokens as raw uint16: every second one may follow from the one before, the rest obey Zipf's law."""
    rng = np.random.default_rng(0)
    drawn = np.minimum(rng.zipf(1.2, tokens), LLAMA["vocab_size"] - 1).astype(np.int64)
    follows = rng.random(tokens // 2) < 0.8
    second = drawn[1::2]
    second[follows] = (drawn[0::2][follows] * 31 + 7) % LLAMA["vocab_size"]
    drawn.astype("<u2").tofile(path)


def reference_batches(path: Path, rows: int, seq_len: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows as nanoGPT fetches them (slices of a mapping, stacked, pinned, copied), here in the order of the file."""
    data = np.memmap(path, dtype=np.uint16, mode="r")
    starts = 0
    while True:
        first = [(starts + row) * seq_len % (len(data) - seq_len - 1) for row in range(rows)]
        starts += rows
        x = torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in first])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in first])
        if device.type == "cuda":
            yield (
                x.pin_memory().to(device, non_blocking=True),
                y.pin_memory().to(device, non_blocking=True),
            )
        else:
            yield x, y


# ------------------------------------------------------------------------------------------------ ours


def our_model(variant: Variant, device: torch.device) -> CausalLM:
    """The model of a variant, with weights, on the device."""
    if variant.style == "ours-hf":
        from transformers import LlamaConfig

        from automodel_cli.models.hf import from_config

        shape = SMOKE_LLAMA if variant.smoke else LLAMA
        model: CausalLM = from_config(LlamaConfig(**shape), attn_implementation="sdpa", is_meta_device=True)
    elif variant.style == "ours-llama":
        from automodel_cli.models.llama import build_llama_model

        model = build_llama_model(**(SMOKE_LLAMA if variant.smoke else LLAMA), is_meta_device=True)
    else:
        layers, heads, width = (SMOKE_SIZES if variant.smoke else GPT2_SIZES)[variant.size]
        model = build_gpt2_model(
            vocab_size=VOCAB, n_positions=variant.seq_len, n_embd=width, n_layer=layers, n_head=heads,
            bias=False, is_meta_device=True,
        )  # fmt: skip
    model.materialize(device, 1337)
    return model


@dataclass
class Ours:
    """Our training step with what the toolkit would choose, or what the variant says."""

    variant: Variant
    device: torch.device
    chosen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        variant, device = self.variant, self.device
        this_machine.configure_process(device)
        self.model = our_model(variant, device)
        self.flops = sizing.flops_per_token(self.model.shape(), variant.seq_len)
        self.dtype = torch.bfloat16
        self._choose()
        adamw = partial(build_adamw, lr=LR, betas=BETAS, device=device)
        rules = same_rule(UpdateRule(adamw, LR, WEIGHT_DECAY), decay_embeddings=True)
        self.optimizer = build_optimizer(self.model, rules)
        if variant.compile:
            whole = self.chosen["scope"] == "model"
            for part in [self.model] if whole else self.model.blocks():
                part.compile(dynamic=False)
        self.batches = self._batches()

    def _choose(self) -> None:
        variant, device, model = self.variant, self.device, self.model
        shape, precision = model.attention_shape(), "bf16"
        kernel, why = variant.attention, "as given"
        if kernel is None and device.type == "cuda" and shape is not None:
            probed = attention_kernels.probe(
                device, rows=variant.rows, heads=shape[0], tokens=variant.seq_len, head_width=shape[1],
                dtype=self.dtype,
            )  # fmt: skip
            kernel, why = (probed.kernel, probed.reason) if probed else (None, "no fused kernel")
        if kernel is not None:
            model.prefer_attention(kernel)
        residual = variant.residual or this_machine.choose_residual("auto", precision=precision, device=device)[0]
        if residual == "bf16":
            model.keep_residual_in(torch.bfloat16)
        scope = variant.scope or this_machine.choose_compile_scope("auto", blocks=len(model.blocks()), processes=1)[0]
        tokens = variant.rows * variant.seq_len
        loss = variant.loss or pick_loss(vocab_size=model.padded_vocab_size, tokens=tokens, width=1, device="cuda")[0]
        self.loss: Any = MaskedCrossEntropy()
        if loss.startswith("chunked"):
            self.loss = ChunkedCrossEntropy(chunk_tokens=int(loss[8:]) if loss[8:] else None)
            self.loss.fused = variant.compile
        self.chosen = {"attention": f"{kernel} ({why})", "residual": residual, "scope": scope, "loss": loss}
        if variant.fp8:
            from automodel_cli.models.layers import fp8

            self.chosen["fp8"] = f"{len(fp8.convert(model))} linear layers"

    def predicted_gib(self) -> float | None:
        """What ``--dry-run`` would say of the peak."""
        shape, variant = self.model.shape(), self.variant
        assert shape is not None
        plan = StepPlan(
            seq_len=variant.seq_len,
            local_batch_size=variant.rows,
            residual_bytes=2 if self.chosen["residual"] == "bf16" else 4,
            compiled=variant.compile,
            whole=self.chosen["scope"] == "model",
            head_loss="chunked" if isinstance(self.loss, ChunkedCrossEntropy) else "plain",
            chunk_tokens=default_chunk_tokens(shape.padded_vocab_size, self.device.type),
            accumulates=variant.accum > 1,
            device=self.device.type,
        )
        peak = peak_memory(shape, plan)
        return None if peak is None else peak.total / 2**30

    def _batches(self) -> Iterator[Batch]:
        dataset = NanogptDataset(Path(self.variant.folder) / "stream.bin", self.variant.seq_len, raw_dtype="uint16")
        rows = self.variant.rows
        loader = TokenLoader(
            dataset, global_batch_size=rows, local_batch_size=rows, num_epochs=None, device=self.device
        )
        return (batches[0] for batches in loader)

    def update(self, accum: int) -> Tensor:
        """One update; the mean loss, on the device."""
        batches = [next(self.batches) for _ in range(accum)]
        return train_step(self.model, self.loss, self.optimizer, batches, max_norm=CLIP, autocast_dtype=self.dtype).loss


class Bare(Ours):
    """Our model, loss and optimizer, and nothing around them: no norm, no numbers, one batch that stays where it is."""

    def update(self, accum: int) -> Tensor:
        if not hasattr(self, "batch"):
            self.batch = next(self.batches)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=self.dtype):
            nll = self.model(self.batch, head_loss=self.loss)
        loss = nll / self.batch.input_ids.numel()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


# ------------------------------------------------------------------------------------------------ references


class NanoGPT:
    """nanoGPT's train.py: bf16 autocast, torch.compile, fused AdamW, clip 1.0, the loss read after every update."""

    chosen: ClassVar = {"style": "nanoGPT train.py: compiled, bf16 autocast, fused AdamW"}

    def __init__(self, variant: Variant, device: torch.device) -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        layers, heads, width = (SMOKE_SIZES if variant.smoke else GPT2_SIZES)[variant.size]
        ours = our_model(replace(variant, style="ours"), device)
        self.flops = sizing.flops_per_token(ours.shape(), variant.seq_len)
        with device:
            self.raw = ReferenceGPT(layers=layers, heads=heads, width=width, tokens=variant.seq_len, vocab=VOCAB)
        self.raw.copy_weights(ours)
        del ours
        self.optimizer = torch.optim.AdamW(
            self.raw.groups(WEIGHT_DECAY), lr=LR, betas=BETAS, fused=device.type == "cuda"
        )
        self.model = torch.compile(self.raw) if variant.compile else self.raw
        self.device = device
        path = Path(variant.folder) / "stream.bin"
        self.batches = reference_batches(path, variant.rows, variant.seq_len, device)
        self.following = next(self.batches)

    def update(self, accum: int) -> float:
        total = 0.0
        for _ in range(accum):
            x, y = self.following
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                _, loss = self.model(x, y)
            self.following = next(self.batches)  # nanoGPT fetches while the GPU does the forward pass
            (loss / accum).backward()
            total = total + loss.detach() / accum
        nn.utils.clip_grad_norm_(self.raw.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()  # type: ignore[attr-defined]


class HFTrainer:
    """transformers' Trainer: eager, bf16 autocast, SDPA, fused AdamW, clip 1.0, a check for NaN after every update."""

    chosen: ClassVar = {"style": "transformers Trainer: eager, bf16 autocast, sdpa, fused AdamW"}

    def __init__(self, variant: Variant, device: torch.device) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**(SMOKE_LLAMA if variant.smoke else LLAMA), use_cache=False)
        config._attn_implementation = "sdpa"
        torch.manual_seed(0)
        with device:
            self.model = LlamaForCausalLM(config)
        self.model.train()
        self.flops = None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=LR,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=device.type == "cuda",
        )
        self.device = device
        path = Path(variant.folder) / "stream.bin"
        self.batches = reference_batches(path, variant.rows, variant.seq_len, device)

    def update(self, accum: int) -> Tensor:
        for _ in range(accum):
            x, _ = next(self.batches)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = self.model(input_ids=x, labels=x).loss  # Trainer's models shift by themselves
            (loss / accum).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.model.zero_grad()
        if torch.isnan(loss):  # logging_nan_inf_filter
            raise FloatingPointError("the loss is NaN")
        return loss.detach()


# ------------------------------------------------------------------------------------------------ the recipe


class Recipe:
    """The recipe's own loop, from its configuration; it pauses after every so many updates until told to go on."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        from automodel_cli.assembly.reporter import Reporter
        from automodel_cli.config.load import load_config
        from automodel_cli.config.schema.pretrain import PretrainConfig
        from automodel_cli.recipes.pretrain import PretrainRecipe

        layers, heads, width = (SMOKE_SIZES if variant.smoke else GPT2_SIZES)[variant.size]
        self.run_folder = Path(variant.folder) / variant.name.replace(" ", "_")
        settings = {
            "model._target_": "automodel_cli.models.gpt2.build_gpt2_model",
            "model.vocab_size": VOCAB, "model.n_positions": variant.seq_len, "model.n_embd": width,
            "model.n_layer": layers, "model.n_head": heads, "model.bias": "false",
            "dataset._target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
            "dataset.file_pattern": str(Path(variant.folder) / "stream.bin"),
            "dataset.raw_dtype": "uint16", "dataset.seq_len": variant.seq_len,
            "optimizer.lr": LR, "optimizer.decay_embeddings": "true", "precision": "bf16",
            "step_scheduler.global_batch_size": variant.rows, "step_scheduler.local_batch_size": variant.rows,
            "step_scheduler.max_steps": 1_000_000, "step_scheduler.num_epochs": 1_000_000,
            "step_scheduler.log_every_steps": 1 if variant.logging else 1000,
            "step_scheduler.ckpt_every_steps": 100 if variant.logging else "null",
            "step_scheduler.val_every_steps": "null",
            "checkpoint.checkpoint_dir": str(self.run_folder), "checkpoint.is_async": "true",
            "checkpoint.enabled": str(variant.logging).lower(), "checkpoint.keep_last": 1,
            "device": device.type, "compile.enabled": str(variant.compile).lower(),
        }  # fmt: skip
        config = load_config(PretrainConfig, None, [f"{key}={value}" for key, value in settings.items()], {})
        self.recipe = PretrainRecipe(config, reporter=Reporter(say=lambda line: print(line, file=sys.stderr)))
        self.recipe.setup()
        self.chosen = {key: str(value) for key, value in self.recipe.fast_path.stored().items()}
        self.flops = sizing.flops_per_token(self.recipe.model.shape(), variant.seq_len)
        self.variant, self.device = variant, device

    def work(self, wanted: Callable[[], Iterator[None]]) -> None:
        """Train; ``wanted`` yields once for each update there is to be."""
        self.loader = PausingLoader(self.recipe.loader, wanted, fixed=self.variant.data == "fixed")
        self.recipe.run = dataclasses.replace(self.recipe.run, loader=self.loader)
        self.recipe.run_train_validation_loop()


class PausingLoader:
    """A loader that asks before each update whether there is to be one; everything else is the loader's own.

    ``bodies_s``: how long the loop was busy with each update, whatever it did besides (logging, saving).
    """

    def __init__(self, loader: Any, wanted: Callable[[], Iterator[None]], *, fixed: bool) -> None:
        self.loader, self.wanted, self.fixed = loader, wanted, fixed
        self.bodies_s: list[float] = []

    def __iter__(self) -> Iterator[list[Batch]]:
        updates, first = iter(self.loader), None
        for _ in self.wanted():
            if first is None or not self.fixed:
                first = next(updates)
            begin = time.perf_counter()
            yield first
            self.bodies_s.append(time.perf_counter() - begin)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


# ------------------------------------------------------------------------------------------------ worker

BUILDERS: dict[str, Callable[[Variant, torch.device], Any]] = {
    "ours": Ours, "ours-hf": Ours, "ours-llama": Ours, "nanogpt": NanoGPT, "hf-trainer": HFTrainer,
    "bare": Bare, "recipe": Recipe,
}  # fmt: skip


def say(**message: Any) -> None:
    """One JSON line to the parent."""
    print(json.dumps(message), flush=True)


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def commands() -> Iterator[dict[str, Any]]:
    """What the parent asks for, one JSON line each."""
    for line in sys.stdin:
        yield json.loads(line)


def work(variant: Variant, started: float) -> None:
    """Build, do the first update, say so; then answer ``{"updates": N, "accum": M}`` until the input ends."""
    device = torch.device("cpu" if variant.smoke else "cuda")
    built_from = time.perf_counter()
    trainer = BUILDERS[variant.style](variant, device)
    if isinstance(trainer, Recipe):
        trainer.work(lambda: recipe_rounds(trainer, device, started, built_from))
        return
    built_s = time.perf_counter() - built_from
    losses = [float(trainer.update(1))]
    settle(device)
    ready(trainer, device, started, built_s, time.perf_counter() - built_from)
    for command in commands():
        if command.get("profile"):
            profile(trainer, command["accum"])
            continue
        begin = time.perf_counter()
        found = [trainer.update(command["accum"]) for _ in range(command["updates"])]
        settle(device)
        wall_s = time.perf_counter() - begin
        losses += [float(one) for one in found]
        say(wall_s=wall_s, losses=losses, peak_gib=peak_gib(device))
        losses = []


def recipe_rounds(trainer: Recipe, device: torch.device, started: float, built_from: float) -> Iterator[None]:
    """The same for the recipe, whose loop asks for each update."""
    built_s = time.perf_counter() - built_from
    yield
    settle(device)
    ready(trainer, device, started, built_s, time.perf_counter() - built_from)
    for command in commands():
        begin = time.perf_counter()
        for _ in range(command["updates"]):
            yield
        settle(device)
        say(
            wall_s=time.perf_counter() - begin,
            losses=[],
            peak_gib=peak_gib(device),
            bodies_s=trainer.loader.bodies_s,
        )


def ready(trainer: Any, device: torch.device, started: float, built_s: float, first_update_s: float) -> None:
    """Tell the parent that compiling and the first update are done."""
    say(
        ready=True,
        built_s=built_s,
        first_update_s=first_update_s,
        since_start_s=time.time() - started,
        flops=trainer.flops,
        chosen=trainer.chosen,
        predicted_gib=trainer.predicted_gib() if isinstance(trainer, Ours) else None,
        peak_gib=peak_gib(device),
    )


def peak_gib(device: torch.device) -> float:
    """Most memory allocated on the device so far."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def profile(trainer: Any, accum: int) -> None:
    """Send the kernels that take the most time of an update."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            trainer.update(accum)
        torch.cuda.synchronize()
    rows = sorted(
        ((event.self_device_time_total / 3e3, event.count // 3, event.key) for event in profiler.key_averages()),
        reverse=True,
    )
    say(kernels=[(round(ms, 3), count, name[:110]) for ms, count, name in rows[:40]])


class Worker:
    """A variant in its own process, seen from the parent."""

    def __init__(self, variant: Variant, log: Path, environment: dict[str, str] | None = None) -> None:
        self.variant = variant
        self.rounds: list[dict[str, Any]] = []
        self.first: dict[str, Any] = {}
        self.error: str | None = None
        self._log = log / f"{variant.name.replace(' ', '_').replace('/', '_')}.log"
        self.process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--worker",
                json.dumps(asdict(variant)),
                "--started",
                str(time.time()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, **command: Any) -> dict[str, Any] | None:
        """The answer to a command; None when the process has ended, with the reason in ``error``."""
        if self.error is not None:
            return None
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return self._failed()
        return self._answer()

    def wait_ready(self) -> bool:
        """Whether the variant is built and warm."""
        answer = self._answer()
        self.first = answer or {}
        return answer is not None

    def _answer(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return self._failed()

    def _failed(self) -> None:
        self.process.wait()
        lines = self._log.read_text().strip().splitlines()
        self.error = (lines[-1] if lines else f"exit code {self.process.returncode}")[:200]
        print(f"  {self.variant.name}: failed: {self.error}", flush=True)

    def close(self) -> None:
        """End the process and free its memory."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    # what was measured

    @property
    def tokens(self) -> int:
        """Tokens of an update when speed is measured."""
        return self.variant.rows * self.variant.seq_len * self.variant.accum

    def tps(self) -> float:
        """Median tokens per second over the rounds."""
        return statistics.median(one["updates"] * self.tokens / one["wall_s"] for one in self.rounds)

    def peak_gib(self) -> float:
        return max([self.first.get("peak_gib", 0.0), *(one["peak_gib"] for one in self.rounds)])


def ratio(ours: Worker, reference: Worker) -> tuple[float, float, float]:
    """Median, lowest and highest ratio of tokens per second, round by round."""
    ratios = [
        (one["updates"] * ours.tokens / one["wall_s"]) / (other["updates"] * reference.tokens / other["wall_s"])
        for one, other in zip(ours.rounds, reference.rounds, strict=True)
    ]
    return statistics.median(ratios), min(ratios), max(ratios)


# ------------------------------------------------------------------------------------------------ parent


@dataclass
class Bench:
    """The parent: starts variants, lets them take turns, collects rows of the table."""

    minutes: float
    folder: Path
    smoke: bool
    rounds: int
    started: float = field(default_factory=time.perf_counter)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    memory_gib: dict[str, tuple[float, float]] = field(default_factory=dict)  # predicted, measured

    def left_s(self) -> float:
        return self.minutes * 60 - (time.perf_counter() - self.started)

    def start(self, *variants: Variant, cache: str = "cache") -> dict[str, Worker]:
        """Start all side by side and wait until all are warm; failed ones are left out. ``cache``: of compiled code."""
        begin = time.perf_counter()
        folder = self.folder / cache
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
        if self.smoke:
            variants = tuple(replace(one, smoke=True, rows=2, seq_len=64, accum=1, compile=False) for one in variants)
        workers = [Worker(replace(variant, folder=str(self.folder)), self.folder, environment) for variant in variants]
        good = {worker.variant.name: worker for worker in workers if worker.wait_ready()}
        self.notes += [f"{worker.variant.name}: {worker.error}" for worker in workers if worker.error]
        for worker in good.values():
            chosen = ", ".join(f"{key} {value}" for key, value in worker.first["chosen"].items())
            print(
                f"  {worker.variant.name}: {worker.first['since_start_s']:.0f} s to warm; {chosen}",
                flush=True,
            )
        print(f"  {len(good)} of {len(workers)} ready after {time.perf_counter() - begin:.0f} s", flush=True)
        return good

    def close(self, workers: dict[str, Worker], *, keep: Sequence[str] = ()) -> None:
        """End all but those to keep; what they took of memory is remembered beside what was predicted."""
        for name in [name for name in workers if name not in keep]:
            worker = workers.pop(name)
            predicted = worker.first.get("predicted_gib")
            if predicted and worker.rounds and worker.error is None:
                self.memory_gib[name] = (predicted, worker.peak_gib())
            worker.close()

    def losses(self, workers: dict[str, Worker], *names: str) -> dict[str, list[float]]:
        """The losses of the first updates of each, one micro-batch an update."""
        found = {}
        for name in names:
            answer = workers[name].ask(updates=5 if self.smoke else 100, accum=1) if name in workers else None
            if answer is not None:
                found[name] = answer["losses"]
        return found

    def take_turns(self, workers: list[Worker], *, updates: int, rounds: int | None = None) -> None:
        """Let each do ``updates`` updates, in turn; one round first that does not count."""
        for number in range((rounds or self.rounds) + 1):
            for worker in workers:
                answer = worker.ask(updates=updates, accum=worker.variant.accum)
                if answer is not None and number:
                    worker.rounds.append({**answer, "updates": updates})

    def row(self, what: str, value: str, reference: str, ratio_text: str, asked: str) -> None:
        self.rows.append([what, value, reference, ratio_text, asked])
        print(f"  | {' | '.join(self.rows[-1])} |", flush=True)

    def mfu(self, worker: Worker) -> str:
        peak = None if self.smoke else this_machine.peak_flops(torch.device("cuda"), PEAK_BF16)
        flops = worker.first.get("flops")
        return "n/a" if not peak or not flops else f"{worker.tps() * flops / peak:.1%}"

    def group(self, name: str, needs_s: float, run: Callable[[], None]) -> None:
        """Run a group if there is time for it; what goes wrong ends the group, not the benchmark."""
        if self.left_s() < needs_s:
            self.notes.append(f"group {name} left out: {self.left_s():.0f} s left, it needs {needs_s:.0f}")
            return
        print(f"{name} ({self.left_s():.0f} s left)", flush=True)
        try:
            run()
        except Exception:
            self.notes.append(f"group {name} ended early: {traceback.format_exc().strip().splitlines()[-1]}")
            traceback.print_exc()


def with_spread(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"


def speed(bench: Bench) -> None:
    """GPT-2 124M and a Llama of 1.1 billion parameters: speed, losses, memory."""
    llama = {"rows": 4, "seq_len": 2048, "accum": 4}
    ours = Variant("ours", "ours", accum=4)
    hf, own = Variant("HF class, our step", "ours-hf", **llama), Variant("our Llama", "ours-llama", **llama)
    first = [
        ours,
        replace(ours, name="whole logits", loss="plain"),
        Variant("nanoGPT style", "nanogpt", accum=4),
    ]
    workers = bench.start(*first, hf, own)
    curves = bench.losses(workers, "ours", "nanoGPT style")
    bench.take_turns([workers[one.name] for one in first if one.name in workers], updates=2)
    gpt2_rows(bench, workers)
    bench.close(workers, keep=[hf.name, own.name])
    plain = replace(ours, name="plain", compile=False, loss="plain", residual="fp32", accum=1)
    workers |= bench.start(plain, Variant("HF Trainer style", "hf-trainer", **llama))
    curves |= bench.losses(workers, "plain")
    loss_rows(bench, curves)
    bench.close(workers, keep=[hf.name, own.name, "HF Trainer style"])
    bench.take_turns(list(workers.values()), updates=1)
    for name in (hf.name, own.name):
        if name in workers and "HF Trainer style" in workers:
            worker, reference = workers[name], workers["HF Trainer style"]
            bench.row(
                f"Llama 1.1B, T 2048, 4 rows, tokens/s: {name}",
                f"{worker.tps():,.0f} (MFU {bench.mfu(worker)}, {worker.peak_gib():.1f} GiB)",
                f"{reference.tps():,.0f}, {reference.peak_gib():.1f} GiB (HF Trainer style)",
                with_spread(ratio(worker, reference)), "1.1",
            )  # fmt: skip
    bench.close(workers)


def gpt2_rows(bench: Bench, workers: dict[str, Worker]) -> None:
    """Speed against the reference, speed alone, memory."""
    ours, reference = workers["ours"], workers.get("nanoGPT style")
    if reference is not None:
        bench.row(
            "GPT-2 124M, T 1024, 32 rows, tokens/s", f"{ours.tps():,.0f}",
            f"{reference.tps():,.0f} (nanoGPT style, compiled)", with_spread(ratio(ours, reference)), "1.10",
        )  # fmt: skip
    bench.row(
        "the same, absolute",
        f"{ours.tps():,.0f} (MFU {bench.mfu(ours)})",
        "462k (published, H100)",
        "",
        "463k",
    )
    best = max((workers[name] for name in ("ours", "whole logits") if name in workers), key=Worker.tps)
    theirs = f"{reference.peak_gib():.1f} GiB (nanoGPT style); " if reference is not None else ""
    bench.row(
        "the same, peak memory", f"{ours.peak_gib():.1f} GiB at {ours.tps() / best.tps():.3f} of the best speed",
        f"{theirs}38.6 GiB (published)", "", "13 GiB at 0.97",
    )  # fmt: skip
    if best is not ours:
        bench.notes.append(f"best speed: {best.variant.name}, {best.tps():,.0f} tok/s, {best.peak_gib():.1f} GiB")


def loss_rows(bench: Bench, curves: dict[str, list[float]]) -> None:
    """How far the losses of the first updates are from ours."""
    ours = curves.get("ours", [])
    for name, curve in curves.items():
        apart = [abs(one - other) for one, other in zip(curve, ours, strict=False)]
        if name != "ours" and apart:
            mean = statistics.fmean(curve) - statistics.fmean(ours)
            bench.row(
                f"first {len(apart)} losses, {ours[0]:.2f} to {ours[-1]:.2f}: ours / {name}", f"mean {mean:+.1e}",
                f"single losses at most {max(apart):.1e}", "", "1e-2",
            )  # fmt: skip


def sizes(bench: Bench) -> None:
    """Larger GPT-2s: MFU. And what the recipe's loop and its checkpoints cost."""
    rows = {"350M": (16, "44%"), "774M": (8, "46%"), "1.5B": (8, "47%")}
    variants = [Variant(size, "ours", size=size, rows=count, accum=4) for size, (count, _) in rows.items()]
    recipe = [Variant("recipe", "recipe", rows=16, logging=True), Variant("bare loop", "bare", rows=16)]
    workers = bench.start(*variants, *recipe)
    large = {size: workers[size] for size in rows if size in workers}
    bench.take_turns(list(large.values()), updates=1)
    for size, worker in large.items():
        bench.row(
            f"GPT-2 {size}, T 1024, {rows[size][0]} rows, MFU",
            f"{bench.mfu(worker)} ({worker.tps():,.0f} tok/s, {worker.peak_gib():.1f} GiB)",
            "48.7% (llm.c, 1.5B, H100)" if size == "1.5B" else "", "", rows[size][1],
        )  # fmt: skip
    bench.close(workers, keep=[one.name for one in recipe])
    if len(workers) == len(recipe):
        on, bare = workers["recipe"], workers["bare loop"]
        bench.take_turns([on, bare], updates=4 if bench.smoke else 100)
        bench.row(
            "recipe (log, norm, a checkpoint every 100 updates) / bare loop, 16 rows", f"{on.tps():,.0f}",
            f"{bare.tps():,.0f}", with_spread(ratio(on, bare)), "0.98",
        )  # fmt: skip
        stall_row(bench, on.rounds[-1]["bodies_s"])
    bench.close(workers)


def stall_row(bench: Bench, bodies_s: list[float]) -> None:
    """How much longer the loop was busy with the updates after which a checkpoint was begun."""
    typical = statistics.median(bodies_s)
    stalls = [bodies_s[index] - typical for index in range(99, len(bodies_s), 100)]
    each = ", ".join(f"{stall:.2f}" for stall in stalls)
    bench.row("stall of a background checkpoint", f"{max(stalls, default=0):.2f} s", f"each: {each}", "", "0.3 s")


def data(bench: Bench) -> None:
    """Real data against one batch that stays on the device, in the recipe."""
    variants = [
        Variant("real data", "recipe", rows=16),
        Variant("fixed data", "recipe", rows=16, data="fixed"),
    ]
    workers = bench.start(*variants)
    real, fixed = workers["real data"], workers["fixed data"]
    bench.take_turns([real, fixed], updates=4 if bench.smoke else 40)
    bench.row(
        "recipe, real / fixed data, tokens/s", f"{real.tps():,.0f}", f"{fixed.tps():,.0f}",
        with_spread(ratio(real, fixed)), "0.995",
    )  # fmt: skip
    bench.close(workers)


def start(bench: Bench) -> None:
    """Seconds from the command to the end of the first update, with an empty and a filled compile cache."""
    for name, asked in (("empty", "60 s"), ("filled", "15 s")):
        (worker,) = bench.start(Variant(f"{name} cache", "ours"), cache="start").values()
        first = worker.first
        imports_s = first["since_start_s"] - first["first_update_s"]
        bench.row(
            f"GPT-2 124M, first update, {name} compile cache", f"{first['since_start_s']:.1f} s",
            f"of which imports {imports_s:.1f} s, model {first['built_s']:.1f} s", "", asked,
        )  # fmt: skip
        worker.close()


# name -> (seconds it needs, what it does)
GROUPS: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "speed": (130, speed), "sizes": (110, sizes), "start": (60, start), "data": (45, data),
}  # fmt: skip


def machine(smoke: bool) -> str:
    """Card and versions."""
    import transformers

    card = platform.processor() or "CPU" if smoke else torch.cuda.get_device_name()
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if not smoke else ""
    return f"{card}, torch {torch.__version__}{cudnn}, transformers {transformers.__version__}"


def main() -> None:
    """Parse the command line, run the groups, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--smoke", action="store_true", help="tiny models on a CPU, to test the script")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Variant(**json.loads(arguments.worker)), arguments.started)
        return
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no CUDA device here; --smoke runs tiny models on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.minutes, Path(folder), arguments.smoke, arguments.rounds)
        write_stream(Path(folder) / "stream.bin", 400_000 if arguments.smoke else STREAM_TOKENS)
        for name in arguments.groups.split(","):
            needs_s, run = GROUPS[name]
            bench.group(name, 0 if arguments.smoke else needs_s, lambda run=run: run(bench))  # type: ignore[misc]
    print(f"\n{time.strftime('%Y-%m-%d')}, {machine(arguments.smoke)}\n")
    print("| what | ours | reference | ratio | goal |\n|---|---|---|---|---|")
    for row in bench.rows:
        print(f"| {' | '.join(row)} |")
    for name, (predicted, measured) in bench.memory_gib.items():
        apart = f"{predicted / measured:.3f}" if measured else "n/a"
        print(f"peak memory, {name}: predicted {predicted:.2f} GiB, measured {measured:.2f}, ratio {apart}")
    for note in bench.notes:
        print(f"note: {note}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": bench.rows, "notes": bench.notes, "memory_gib": bench.memory_gib}, indent=1)
        )


if __name__ == "__main__":
    main()
