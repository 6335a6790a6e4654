"""What rotary positions, clipping, QK-norm, softcap and z-loss do to a small model; bytes of a text file.

    python benchmarks/stability.py TEXT [--steps 200] [--only clipping]

A GPT of 2 layers of 64 (preset modern, without its own QK-norm and softcap), 16 rows of 64 bytes an update, AdamW with
betas 0.9 and 0.95, a warm-up of 10 updates, one seed. Loss: mean nll of the last 20 updates.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automodel_cli.batch import Batch
from automodel_cli.models.gpt import GPT, build_gpt_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.step import train_step

ROWS, TOKENS, WARM_UP, LAST = 16, 64, 10, 20
SPIKE_AT = 100  # the update whose gradient is made large


def model_of(**options: Any) -> GPT:
    plain = {"qk_norm": False, "softcap": 0.0, "init": "gpt2", "embedding_norm": False}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 256}
    model = build_gpt_model(**sizes, max_position_embeddings=TOKENS, **{**plain, **options})
    model.init_weights(0)
    return model


def batches(text: Path, steps: int) -> list[Batch]:
    data = torch.frombuffer(bytearray(text.read_bytes()), dtype=torch.uint8).long()
    starts = torch.randint(len(data) - TOKENS, (steps, ROWS), generator=torch.Generator().manual_seed(0))
    rows = [torch.stack([data[start : start + TOKENS + 1] for start in of_one]) for of_one in starts.tolist()]
    return [Batch(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in rows]


def trained(
    model: GPT,
    data: list[Batch],
    rate: float,
    *,
    loss: Any = None,
    spike: float = 1.0,
    max_norm: float | None = 1.0,
) -> list[float]:
    """Losses of all updates.

    Args:
        spike: what the loss of one update is multiplied by: a gradient that is so many times too large.
    """
    loss = loss or MaskedCrossEntropy()
    optimizer = build_optimizer(model, same_rule(UpdateRule(build_adamw, rate, 0.0)))
    found = []
    for step, batch in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        factor = spike if step == SPIKE_AT else 1.0
        metrics = train_step(model, Scaled(loss, factor), optimizer, [batch], max_norm=max_norm)
        found.append(metrics.loss.item() / factor)
    return found


class Scaled:
    """A loss times a number."""

    def __init__(self, loss: Any, factor: float) -> None:
        self.loss, self.factor = loss, factor

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        return self.loss(*arguments, **keywords) * self.factor

    def from_logits(self, *arguments: Any) -> Tensor:
        return self.loss.from_logits(*arguments) * self.factor


@torch.no_grad()
def largest_score(model: GPT, batch: Batch) -> float:
    """The largest product of a query and a key, over sqrt(head_dim), that attention sees."""
    seen = [0.0]

    def watched(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def with_scores(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
            seen.append(((query @ key.mT) / math.sqrt(query.shape[-1])).abs().max().item())
            return attend(query, key, *rest, **options)

        return with_scores

    model.change_attention(watched)  # type: ignore[arg-type]
    model(batch)
    return max(seen)


def line(name: str, losses: list[float], more: str) -> None:
    print(f"  {name:28s} loss {sum(losses[-LAST:]) / LAST:.3f}   {more}", flush=True)


def clipping(data: list[Batch]) -> None:
    print(f"clipping: the gradient of update {SPIKE_AT + 1} times 1,000; learning rate 0.003")
    for name, spike, max_norm in (("no spike", 1.0, 1.0), ("clipped to 1", 1e3, 1.0), ("not clipped", 1e3, None)):
        losses = trained(model_of(), data, 0.003, spike=spike, max_norm=max_norm)
        before = sum(losses[SPIKE_AT - 10 : SPIKE_AT]) / 10
        later = losses[SPIKE_AT + 1 :]
        back = next((n for n in range(len(later) - 5) if sum(later[n : n + 5]) / 5 <= before), None)
        again = "not back" if back is None else f"back after {back} updates"
        line(name, losses, f"highest after it {max(later[:40]):.3f}, {again} at the mean before it, {before:.3f}")


def qk_norm(data: list[Batch]) -> None:
    for rate in (0.003, 0.03):
        print(f"QK-norm, learning rate {rate:g}")
        for on in (False, True):
            model = model_of(qk_norm=on)
            losses = trained(model, data, rate)
            line(f"qk_norm {str(on).lower()}", losses, f"largest score {largest_score(model, data[0]):.1f}")


def logits(data: list[Batch]) -> None:
    print("softcap and z-loss, learning rate 0.03")
    runs: dict[str, tuple[dict[str, Any], Any]] = {
        "neither": ({}, None),
        "softcap 15": ({"softcap": 15.0}, None),
        "z_loss_weight 1e-4": ({}, ChunkedCrossEntropy(z_loss_weight=1e-4)),
        "z_loss_weight 1e-2": ({}, ChunkedCrossEntropy(z_loss_weight=1e-2)),
    }
    for name, (options, loss) in runs.items():
        model = model_of(**options)
        losses = trained(model, data, 0.03, loss=loss)
        with torch.no_grad():
            found = model(data[0])
        log_z = found.logsumexp(-1)
        line(name, losses, f"largest magnitude of a logit {found.abs().max():.1f}, mean log Z {log_z.mean():+.2f}")


def positions(data: list[Batch]) -> None:
    print("positions, learning rate 0.003")
    for kind in ("learned", "rope"):
        line(kind, trained(model_of(positions=kind), data, 0.003), "")


PARTS = {"positions": positions, "clipping": clipping, "qk_norm": qk_norm, "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=sorted(PARTS))
    arguments = parser.parse_args()
    data = batches(arguments.text, arguments.steps)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(data)


if __name__ == "__main__":
    main()
