"""What the console shows of a run's numbers, one line a record, in one of two formats.

``compact``: what means something in this run, aligned, with units, as many fields as the terminal is wide::

    step 470/800 | loss  3.8414 | lr 9.35e-04 | grad 0.856 |  18.3K tok/s | mem  1.93 GiB | epoch 1 | eta 0:01:28

``classic``: NeMo AutoModel's fields, which users scrape, and three of ours behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from automodel_cli.text import clock, human

UNKNOWN = "n/a"
WIDTH = 120
"""Columns of a line where there is no terminal that says how many it has."""
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Lines:
    """A format: the line of an update, of a validation pass, of an evaluation on tasks."""

    train: Callable[[Record], str]
    val: Callable[[Record], str]
    eval: Callable[[Record], str]


# ---------------------------------------------------------------------------------------- compact


def compact(*, total_steps: int, per_gpu: bool = False, width: Callable[[], int] = lambda: WIDTH) -> Lines:
    """Compact lines of a run of ``total_steps``.

    Args:
        per_gpu: also show each GPU's share of the tokens a second.
        width: columns there are, asked at each line; what does not fit is left out, the least important first.
    """

    def step(record: Record) -> str:
        return f"step {record['step']}/{total_steps}".ljust(6 + 2 * len(str(total_steps)))

    def train(record: Record) -> str:
        """The line of an update; what is wider than the terminal loses its least important fields."""
        fields = [
            (0, step(record)),
            (1, _field(record, "loss", "loss {:>7.4f}")),
            (7, _field(record, "loss_avg", "avg {:>7.4f}")),
            (4, _field(record, "lr", "lr {:.2e}")),
            (5, _field(record, "grad_norm", "grad {:>5.3g}")),
            (3, _field(record, "tps", "{:>6} tok/s", human)),
            (9, _field(record, "tps_per_gpu", "{:>6}/gpu", human) if per_gpu else ""),
            (6, _field(record, "mfu", "mfu {:>5.1%}")),
            (7, _field(record, "packing_efficiency", "packed {:>5.1%}")),
            (8, _field(record, "mem_gib", "mem {:>5.2f} GiB")),
            (10, f"epoch {record['epoch']}" if record.get("epoch") else ""),
            (2, _field(record, "eta_s", "eta {}", clock)),
            (0, "skipped (not finite)" if record.get("skipped") else ""),
        ]
        return _fit(fields, width())

    def val(record: Record) -> str:
        name = record.get("name", "default")
        fields = [
            (0, f"[val{'' if name == 'default' else f' {name}'}] {step(record).rstrip()}"),
            (1, _field(record, "loss", "loss {:.4f}")),
            (3, _field(record, "perplexity", "ppl {:.2f}")),
            (4, _field(record, "bits_per_byte", "bits/byte {:.4f}")),
            (2, "best so far" if record.get("best") else ""),
        ]
        return _fit(fields, width())

    def evaluation(record: Record) -> str:
        fields = [
            (0, f"[eval] {step(record).rstrip()}"),
            (1, _field(record, "core", f"core {{:.4f}} over {record.get('core_tasks')} tasks")),
            (2, _field(record, "evaluated_tasks", "{} tasks") + _field(record, "seconds", " in {:.1f} s")),
        ]
        return _fit(fields, width())

    return Lines(train, val, evaluation)


def _field(record: Record, key: str, pattern: str, shown: Callable[[Any], Any] = lambda value: value) -> str:
    """The field, or nothing where there is no number."""
    value = record.get(key)
    return "" if value is None else pattern.format(shown(value))


def _fit(fields: Sequence[tuple[int, str]], width: int) -> str:
    """The fields in their order, without the least important ones (highest numbers) where ``width`` is too small."""
    kept = [field for field in fields if field[1]]
    while len(kept) > 1 and sum(len(text) + 3 for _, text in kept) - 3 > width:
        kept.remove(max(kept, key=lambda field: field[0]))
    return " | ".join(text for _, text in kept)


# ---------------------------------------------------------------------------------------- classic


def train_line(record: Record) -> str:
    """The classic line of one update: fields, order and formats are fixed.

    Keys read: step, epoch, loss, grad_norm, lr, mem_gib, tps, tps_per_gpu, num_label_tokens, mfu (a
    fraction), eta_s, loss_avg and packing_efficiency (a fraction; both only where there is one), skipped. What is
    missing or None is printed as ``n/a``.
    """
    fields = [
        f"step {_text(record, 'step', 'd')}",
        f"epoch {_text(record, 'epoch', 'd')}",
        f"loss {_text(record, 'loss', '.4f')}",
        f"grad_norm {_text(record, 'grad_norm', '.4f')}",
        f"lr {_text(record, 'lr', '.2e')}",
        f"mem {_text(record, 'mem_gib', '.2f')} GiB",
        f"tps {_text(record, 'tps', '.2f')}({_text(record, 'tps_per_gpu', '.2f')}/gpu)",
        f"num_label_tokens {_text(record, 'num_label_tokens', 'd')}",
        f"mfu {_text(record, 'mfu', '.1%')}",
        f"eta {clock(record.get('eta_s'))}",
    ]
    if record.get("loss_avg") is not None:
        fields.append(f"loss_avg {_text(record, 'loss_avg', '.4f')}")
    if record.get("packing_efficiency") is not None:
        fields.append(f"packed {_text(record, 'packing_efficiency', '.1%')}")
    if record.get("skipped"):
        fields.append("skipped (not finite)")
    return " | ".join(fields)


def val_line(record: Record) -> str:
    """The classic line of one validation pass.

    Keys read: name, step, epoch, loss, perplexity, bits_per_byte, tokens, best.
    """
    fields = [
        f'[val] name "{record.get("name", "default")}"',
        f"step {_text(record, 'step', 'd')}",
        f"epoch {_text(record, 'epoch', 'd')}",
        f"loss {_text(record, 'loss', '.4f')}",
        f"ppl {_text(record, 'perplexity', '.2f')}",
        f"bpb {_text(record, 'bits_per_byte', '.4f')}",
        f"num_label_tokens {_text(record, 'tokens', 'd')}",
    ]
    if record.get("best"):
        fields.append("best so far")
    return " | ".join(fields)


def eval_line(record: Record) -> str:
    """The classic line of one evaluation on tasks.

    Keys read: step, epoch, core, core_tasks, evaluated_tasks, seconds.
    """
    fields = [
        f"[eval] step {_text(record, 'step', 'd')}",
        f"epoch {_text(record, 'epoch', 'd')}",
        f"tasks {_text(record, 'evaluated_tasks', 'd')}",
    ]
    if record.get("core") is not None:
        fields.append(f"core {_text(record, 'core', '.4f')} over {_text(record, 'core_tasks', 'd')} tasks")
    return " | ".join([*fields, f"{_text(record, 'seconds', '.1f')} s"])


def _text(record: Record, key: str, spec: str) -> str:
    value = record.get(key)
    return UNKNOWN if value is None else format(value, spec)


CLASSIC = Lines(train_line, val_line, eval_line)
