"""Training on a CPU against loops in nanoGPT's style, and what the recipe costs over a bare loop: one table.

4 layers x 256 wide, T 256, B 8, V 50,304. The references are written here in the style of nanoGPT's train.py with
its settings (AdamW 0.9/0.95, weight decay 0.1 on matrices, clip 1.0, no biases, no dropout): eager in fp32, as it runs
on a CPU, and with torch.compile and bf16 autocast. "ours" is the toolkit's training step with what the toolkit picks
by itself for 200 updates, "ours compiled" with what it picks for a long run. "recipe" is the whole of ``pretrain`` with
a console line and a metrics.jsonl record for every update; "bare loop" is forward, backward, clip and step with the
same model, loss and precision.

Each variant is a process of its own (thread pools, memory settings and compiled code are global to one); the parent
lets them run in turn, so that a busy machine hurts all alike. Ratios are those of the same round: median, least and
most. The first four train on the same batches from the same weights; their mean losses are compared, over more steps
with ``--loss-steps 200``.

    python benchmarks/train.py [--rounds 5] [--steps 3] [--threads 1] [--all] [--loss-steps 200]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automodel_cli import device as this_machine
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.batch import Batch
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.models.gpt2 import GPT2, build_gpt2_model
from automodel_cli.recipes.pretrain import PretrainRecipe
from automodel_cli.train.loss_choice import pick_loss
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.step import train_step
from reference_loops import ReferenceGPT

VOCAB, TOKENS, ROWS, WIDTH, LAYERS, HEADS = 50304, 256, 8, 256, 4, 4
LR, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0
STREAM_TOKENS = 1 << 20

REFERENCE, COMPILED_REFERENCE = "reference", "reference compiled bf16"
OURS, OURS_COMPILED = "ours", "ours compiled"
BARE, RECIPE = "bare loop", "recipe"

# --all: every combination of (compute dtype, chunked loss, compiled)
COMBINATIONS: dict[str, tuple[str, bool, bool]] = {
    "fp32": ("fp32", False, False),
    "fp32 chunked": ("fp32", True, False),
    "fp32 compiled": ("fp32", False, True),
    "bf16": ("bf16", False, False),
    "bf16 chunked": ("bf16", True, False),
    "bf16 compiled": ("bf16", False, True),
    "bf16 chunked compiled": ("bf16", True, True),
}

Step = Callable[[Tensor, Tensor], float]


# ------------------------------------------------------------------------------------------------ data and model


def token_stream() -> np.ndarray:
    """Learnable tokens: half follow their predecessor by a fixed rule, half are drawn by Zipf's law."""
    rng = np.random.default_rng(0)
    drawn = np.minimum(rng.zipf(1.2, STREAM_TOKENS), VOCAB - 1).astype(np.int64)
    follows = rng.random(STREAM_TOKENS) < 0.5
    stream = drawn.copy()
    for index in range(1, STREAM_TOKENS):
        if follows[index]:
            stream[index] = (stream[index - 1] * 31 + 7) % VOCAB
    return stream.astype(np.uint16)


def get_batch(stream: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows, as nanoGPT draws them."""
    starts = torch.randint(len(stream) - TOKENS - 1, (ROWS,), generator=generator).tolist()
    x = torch.stack([torch.from_numpy(stream[s : s + TOKENS].astype(np.int64)) for s in starts])
    y = torch.stack([torch.from_numpy(stream[s + 1 : s + 1 + TOKENS].astype(np.int64)) for s in starts])
    return x, y


def our_model() -> GPT2:
    """The benchmark's GPT in the toolkit: no biases and erf GELU, as nanoGPT's train.py has it."""
    model = build_gpt2_model(
        vocab_size=VOCAB,
        n_positions=TOKENS,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bias=False,
        activation="gelu",
    )
    model.init_weights(1337)
    return model


def reference_step(*, compiled_bf16: bool) -> Step:
    """nanoGPT's loop: plain AdamW, mean loss, clip 1.0; fp32 and eager, or torch.compile and bf16 autocast."""
    model = ReferenceGPT(layers=LAYERS, heads=HEADS, width=WIDTH, tokens=TOKENS, vocab=VOCAB)
    model.copy_weights(our_model())
    optimizer = torch.optim.AdamW(model.groups(WEIGHT_DECAY), lr=LR, betas=(0.9, 0.95))
    if compiled_bf16:
        model.compile()

    def step(x: Tensor, y: Tensor) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compiled_bf16):
            _, loss = model(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def our_step(precision: str, chunked: bool, compiled: bool) -> Step:
    """The toolkit's training step with these choices."""
    this_machine.configure_process(torch.device("cpu"))
    model = our_model()
    # nanoGPT decays every matrix, embeddings too.
    adamw = partial(build_adamw, lr=LR, betas=(0.9, 0.95), device="cpu")
    rules = same_rule(UpdateRule(adamw, LR, WEIGHT_DECAY), decay_embeddings=True)
    optimizer = build_optimizer(model, rules)
    loss = ChunkedCrossEntropy() if chunked else MaskedCrossEntropy()
    if compiled:
        model.compile(dynamic=False)

    def step(x: Tensor, y: Tensor) -> float:
        dtype = torch.bfloat16 if precision == "bf16" else None
        return train_step(model, loss, optimizer, [Batch(x, y)], max_norm=CLIP, autocast_dtype=dtype).loss.item()

    return step


def chosen(updates: int) -> tuple[str, bool, bool]:
    """What the toolkit picks on this machine for a run of so many updates."""
    cpu = torch.device("cpu")
    tokens = ROWS * TOKENS
    precision, _ = this_machine.choose_precision("auto", cpu)
    dtype = torch.bfloat16 if precision == "bf16" else None
    loss, _ = pick_loss(vocab_size=VOCAB, tokens=tokens, width=WIDTH, dtype=dtype)
    size = sum(parameter.numel() for parameter in our_model().parameters())
    compiled, _ = this_machine.choose_compile(
        "auto", device=cpu, total_tokens=updates * tokens, total_steps=updates, parameters=size
    )
    return precision, loss == "chunked", compiled


SHORT_RUN, LONG_RUN = 200, 1_000_000


# ------------------------------------------------------------------------------------------- recipe and bare loop


def write_tokens(path: Path, tokens: int) -> None:
    """Random tokens: the loop does not care."""
    ids = np.random.default_rng(0).integers(0, 50257, tokens).astype("<u2")
    writer = ShardWriter(path, dtype=np.dtype("uint16"))
    writer.write(ids, np.arange(0, tokens, 1000))
    writer.close()


def build_recipe(data: Path, run: Path, steps: int) -> PretrainRecipe:
    """The recipe, set up for ``steps`` updates, every one of them logged."""
    shape = {"vocab_size": VOCAB, "n_positions": TOKENS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    overrides = [
        "model._target_=automodel_cli.models.gpt2.build_gpt2_model",
        *(f"model.{key}={value}" for key, value in shape.items()),
        "dataset._target_=automodel_cli.data.nanogpt_dataset.NanogptDataset",
        f"dataset.file_pattern={data}",
        f"dataset.seq_len={TOKENS}",
        f"step_scheduler.global_batch_size={ROWS}",
        f"step_scheduler.local_batch_size={ROWS}",
        f"step_scheduler.max_steps={steps}",
        "step_scheduler.ckpt_every_steps=null",
        f"checkpoint.checkpoint_dir={run}",
    ]
    recipe = PretrainRecipe(load_config(PretrainConfig, None, overrides, {}), reporter=Reporter(say=print))
    recipe.setup()
    return recipe


def bare_loop(recipe: PretrainRecipe, steps: int) -> None:
    """``steps`` updates with the recipe's own model, loss and optimizer, and nothing around them."""
    model, optimizer, dtype = recipe.model, recipe.optimizer, recipe.fast_path.autocast_dtype
    buffer = np.empty((ROWS, TOKENS + 1), dtype=np.int64)
    for step in range(steps):
        recipe.dataset.read_samples(np.arange(step * ROWS, (step + 1) * ROWS), buffer)
        rows = torch.from_numpy(buffer)
        batch = Batch(rows[:, :-1], rows[:, 1:])
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            nll = model(batch, head_loss=recipe.head_loss)
        (nll / batch.labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        nll.item()


# ------------------------------------------------------------------------------------------------ worker and parent


Rounds = Iterator[dict[str, Any]]


def timed(work: Callable[[], list[float]]) -> dict[str, Any]:
    """Seconds, losses and peak memory of one round."""
    wall, cpu = time.perf_counter(), time.process_time()
    losses = work()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "losses": losses,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def step_rounds(step: Step, sizes: Iterator[int]) -> Rounds:
    """One training step after the other, on nanoGPT's random windows."""
    stream, generator = token_stream(), torch.Generator().manual_seed(1337)
    for steps in sizes:
        yield timed(lambda: [step(*get_batch(stream, generator)) for _ in range(steps)])  # noqa: B023


def loop_rounds(variant: str, sizes: Iterator[int]) -> Rounds:
    """A new recipe for each round, warmed up by three bare updates; then its own loop, or the bare one."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.bin"
        write_tokens(data, 2_000_000)
        for number, steps in enumerate(sizes):
            with contextlib.redirect_stdout(io.StringIO()):  # the console is a buffer, as under a log file
                recipe = build_recipe(data, Path(folder) / f"run{number}", steps)
                bare_loop(recipe, 3)

                def run() -> list[float]:
                    if variant == BARE:
                        bare_loop(recipe, steps)  # noqa: B023
                    else:
                        recipe.run_train_validation_loop()  # noqa: B023
                    return []

                result = timed(run)
            yield result


def rounds_of(variant: str, sizes: Iterator[int]) -> Rounds:
    """What a worker does for each number of steps that it is given."""
    if variant in (BARE, RECIPE):
        return loop_rounds(variant, sizes)
    if variant in (REFERENCE, COMPILED_REFERENCE):
        return step_rounds(reference_step(compiled_bf16=variant == COMPILED_REFERENCE), sizes)
    picked = {OURS: SHORT_RUN, OURS_COMPILED: LONG_RUN}.get(variant)
    return step_rounds(our_step(*(chosen(picked) if picked else COMBINATIONS[variant])), sizes)


def work(variant: str) -> None:
    """Answer each line ``N`` on stdin with the times and losses of N more steps, as one JSON line."""
    for result in rounds_of(variant, map(int, sys.stdin)):
        print(json.dumps(result), flush=True)


class Worker:
    """A variant in its own process."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.rounds: list[dict[str, Any]] = []
        self.losses: list[float] = []
        plain = variant in (REFERENCE, COMPILED_REFERENCE)  # as torch is by itself
        own = {} if plain else {this_machine.HUGE_PAGES_VARIABLE: "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", variant],
            env={**os.environ, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, steps: int) -> dict[str, Any]:
        """Run ``steps`` more steps and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        result = json.loads(self.process.stdout.readline())
        result["tokens_per_s"] = steps * ROWS * TOKENS / result["wall_s"]
        result["ms"] = result["wall_s"] / steps * 1e3
        result["cpu_ms"] = result["cpu_s"] / steps * 1e3
        self.losses += result["losses"]
        return result

    def median(self, key: str) -> float:
        """Median over rounds."""
        return statistics.median(one[key] for one in self.rounds)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure(variants: list[str], *, rounds: int, steps: int, loop_steps: int) -> dict[str, Worker]:
    """Let the variants run in turn, every other round backwards; they are ended."""
    workers = {variant: Worker(variant) for variant in variants}
    sizes = {variant: loop_steps if variant in (BARE, RECIPE) else steps for variant in variants}
    for variant, worker in workers.items():
        first = worker.run(2)  # warm-up and compilation
        print(f"{variant}: first two steps {first['wall_s']:.1f} s", file=sys.stderr)
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            workers[variant].rounds.append(workers[variant].run(sizes[variant]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return workers


# ---------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Row:
    """One line of the table: what is compared, and the ratio that is asked for."""

    name: str
    ours: str
    reference: str
    key: str
    asked: float
    at_most: bool = False


def rows(*, amx: bool) -> list[Row]:
    """What is asked for on this machine."""
    return [
        Row("tokens/s, eager fp32 loop", OURS, REFERENCE, "tokens_per_s", 3.5 if amx else 2.0),
        Row(
            "tokens/s, the same with torch.compile, bf16",
            OURS_COMPILED,
            COMPILED_REFERENCE,
            "tokens_per_s",
            1.0,
        ),
        Row("peak RSS in MiB, eager fp32 loop", OURS, REFERENCE, "peak_mib", 0.6, at_most=True),
        Row("tokens/s, recipe over bare loop", RECIPE, BARE, "tokens_per_s", 0.97),
    ]


def show_variants(workers: dict[str, Worker]) -> None:
    """Every variant by itself."""
    print(f"{'variant':24} {'ms/step':>8} {'cpu ms':>8} {'tok/s':>7} {'peak MiB':>8} {'x wall':>7} {'x cpu':>7}")
    for name, worker in workers.items():
        against = [ratios(worker, workers[REFERENCE], key) for key in ("ms", "cpu_ms")]
        faster = [1 / statistics.median(one) for one in against]
        print(
            f"{name:24} {worker.median('ms'):8.0f} {worker.median('cpu_ms'):8.0f}"
            f" {worker.median('tokens_per_s'):7.0f} {worker.rounds[-1]['peak_mib']:8.0f}"
            f" {faster[0]:7.2f} {faster[1]:7.2f}"
        )


def ratios(worker: Worker, reference: Worker, key: str) -> list[float]:
    """``key`` over that of the reference in the same round, for each round."""
    return [one[key] / base[key] for one, base in zip(worker.rounds, reference.rounds, strict=True)]


def show_rows(workers: dict[str, Worker], *, amx: bool) -> None:
    """The table, as Markdown. CPU time tells of a busy machine: it suffers less from what others do than wall time."""
    print("\n| row | ours | reference | ratio (range) | ratio by CPU time | asked | |\n|---|---|---|---|---|---|---|")
    for row in rows(amx=amx):
        ours, reference = workers[row.ours], workers[row.reference]
        found = ratios(ours, reference, row.key)
        middle = statistics.median(found)
        met = middle <= row.asked if row.at_most else middle >= row.asked
        by_cpu = "" if row.at_most else f"{statistics.median(ratios(reference, ours, 'cpu_ms')):.3g}"
        print(
            f"| {row.name} | {ours.median(row.key):,.0f} | {reference.median(row.key):,.0f}"
            f" | {middle:.3g} ({min(found):.3g} to {max(found):.3g}) | {by_cpu}"
            f" | {'at most ' * row.at_most}{row.asked:g} | {'met' if met else 'not met'} |"
        )
    apart = abs(statistics.fmean(workers[OURS].losses) - statistics.fmean(workers[REFERENCE].losses))
    steps = len(workers[OURS].losses)
    print(
        f"| mean loss of {steps} steps, eager fp32 loop | {statistics.fmean(workers[OURS].losses):.4f}"
        f" | {statistics.fmean(workers[REFERENCE].losses):.4f} | difference {apart:.1e} | | at most 1e-2"
        f" | {'met' if apart <= 1e-2 else 'not met'} |"
    )


def compare_losses(steps: int) -> None:
    """Train both for ``steps`` updates on the same batches and print how far the losses are apart."""
    curves = []
    for variant in (REFERENCE, OURS):
        worker = Worker(variant)
        curves.append(worker.run(steps)["losses"])
        worker.close()
    means = [statistics.fmean(curve) for curve in curves]
    furthest = max(abs(one - other) for one, other in zip(*curves, strict=True))
    assert all(math.isfinite(loss) for curve in curves for loss in curve)
    print(
        f"mean loss over {steps} steps: reference {means[0]:.4f}, ours {means[1]:.4f},"
        f" difference {abs(means[0] - means[1]):.1e} (single steps at most {furthest:.1e};"
        f" from {curves[0][0]:.3f} to {curves[0][-1]:.3f})"
    )


def in_words(choice: tuple[str, bool, bool]) -> str:
    """A combination, for people."""
    precision, chunked, compiled = choice
    return f"{precision}, {'chunked' if chunked else 'plain'} loss, {'compiled' if compiled else 'eager'}"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a round")
    parser.add_argument("--loop-steps", type=int, default=10, help="the same for recipe and bare loop")
    parser.add_argument("--all", action="store_true", help="also every combination of ours")
    parser.add_argument("--loss-steps", type=int, default=0, help="also compare the mean loss over this many steps")
    parser.add_argument("--threads", type=int, help="threads per process; default: torch's own choice")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # workers inherit it
    if arguments.worker:
        work(arguments.worker)
        return
    features = sorted(this_machine.cpu_features() & {"amx_bf16", "avx512_bf16"})
    print(
        f"torch {torch.__version__}, {arguments.threads or torch.get_num_threads()} threads,"
        f" {', '.join(features) or 'no bf16 instructions'}"
    )
    print(f"ours: {in_words(chosen(SHORT_RUN))}; ours compiled: {in_words(chosen(LONG_RUN))}")
    variants = [REFERENCE, OURS, COMPILED_REFERENCE, OURS_COMPILED, BARE, RECIPE]
    variants += COMBINATIONS if arguments.all else ()
    workers = measure(variants, rounds=arguments.rounds, steps=arguments.steps, loop_steps=arguments.loop_steps)
    show_variants(workers)
    show_rows(workers, amx="amx_bf16" in features)
    if arguments.loss_steps:
        compare_losses(arguments.loss_steps)


if __name__ == "__main__":
    main()
