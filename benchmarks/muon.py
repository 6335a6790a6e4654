"""An update of muon_adamw: stacked, against one matrix at a time, fp32 and torch's Muon; its share of a training step.

    python benchmarks/muon.py [--rounds 5] [--layers 12] [--width 256] [--threads N]

Every variant in turn, medians of the rounds and of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from automodel_cli.batch import Batch
from automodel_cli.device import choose_orthogonalization, choose_precision
from automodel_cli.dtypes import autocast_dtype
from automodel_cli.models.gpt2 import GPT2, build_gpt2_model
from automodel_cli.train.losses import MaskedCrossEntropy
from automodel_cli.train.muon.optimizer import MuonAdamW
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.step import train_step

VOCAB, TOKENS, ROWS = 4096, 256, 8


def model_of(layers: int, width: int) -> GPT2:
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=width, n_layer=layers, n_head=width // 64)
    model.init_weights(0)
    return model


def matrices_of(model: GPT2) -> list[torch.nn.Parameter]:
    """The blocks' matrices, the fused one as three, with gradients."""
    found = []
    for name, weight in model.named_parameters():
        layout = model.matrix_layouts().get(name)
        if model.param_roles()[name] == "matrix":
            found += weight.detach().split(layout.sizes) if layout and layout.sizes else [weight.detach()]
    parameters = [torch.nn.Parameter(one.clone()) for one in found]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return parameters


def updates(model: GPT2) -> dict[str, Callable[[], object]]:
    """One update of all matrices, several ways; five steps of the same polynomial, in bfloat16 where not named."""
    settings = {"method": "newton_schulz", "lr": 1e-4}
    stacked = MuonAdamW(matrices_of(model), **settings)  # type: ignore[arg-type]
    single = [MuonAdamW([one], **settings) for one in matrices_of(model)]  # type: ignore[arg-type]
    in_float32 = MuonAdamW(matrices_of(model), dtype="float32", **settings)  # type: ignore[arg-type]
    torchs = torch.optim.Muon(matrices_of(model), lr=1e-4)
    return {
        "stacked": stacked.step,
        "one at a time": lambda: [one.step() for one in single],
        "stacked, float32": in_float32.step,
        "torch.optim.Muon": torchs.step,
    }


def steps(model: GPT2) -> dict[str, Callable[[], object]]:
    """Whole training steps, in what this machine computes fast."""
    device = torch.device("cpu")
    dtype = autocast_dtype(choose_precision("auto", device)[0])
    ids = torch.randint(0, VOCAB, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    arguments = {"orthogonalization_dtype": choose_orthogonalization("auto", device)[0]}
    muon = build_optimizer(model, muon_adamw(**arguments)(model, fused=True))
    adamw = build_optimizer(model, same_rule(UpdateRule(build_adamw, 1e-4, 0.1)))

    def run(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        return lambda: train_step(model, MaskedCrossEntropy(), optimizer, [batch], autocast_dtype=dtype)

    return {"step with muon_adamw": run(muon), "step with AdamW": run(adamw), "muon_adamw alone": muon.step}


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    for run in variants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return taken


def show(taken: dict[str, list[float]], reference: str) -> None:
    for name, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, taken[reference], strict=True))
        print(f"  {name:24s} {statistics.median(seconds) * 1e3:8.1f} ms   {ratio:5.2f} x {reference}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = model_of(arguments.layers, arguments.width)
    print(f"{arguments.layers} layers of {arguments.width}, {torch.get_num_threads()} threads")
    print("an update of the matrices")
    show(measure(updates(model), arguments.rounds), "stacked")
    print(f"a step of {ROWS} x {TOKENS} tokens, vocabulary {VOCAB}")
    show(measure(steps(model), arguments.rounds), "step with muon_adamw")


if __name__ == "__main__":
    main()
