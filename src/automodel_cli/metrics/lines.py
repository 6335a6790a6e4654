"""What the console shows of a run's numbers, one line a record, in one of two formats.

``compact``: what means something in this run, aligned, with units, as many fields as the terminal is wide::

    step 470/800 | loss  3.8414 | lr 9.35e-04 | grad 0.856 |  18.3K tok/s | mem  1.93 GiB | epoch 1 | eta 0:01:28

``classic``: NeMo AutoModel's fields, which users scrape, and three of ours behind them.

Both are tables of patterns over a record's keys: ``{lr:.2e}`` as ``format`` has it, ``{tps:human}`` and
``{eta_s:clock}`` as people write them, ``{loss_by_source:each}`` a mapping. ``mfu`` and ``packing_efficiency`` are
fractions.
"""

from __future__ import annotations

import string
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


class _Patterns(string.Formatter):
    """Patterns filled from a record; what it lacks, and None, is ``n/a``."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Record) -> Any:
        return kwargs.get(str(key))

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return UNKNOWN
        people = {"clock": clock, "human": lambda number: f"{human(number):>6}", "each": _each}
        return people[format_spec](value) if format_spec in people else format(value, format_spec)


def _each(losses: Record) -> str:
    return " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())


_FILL = _Patterns()
_SHOWN_IF_TRUE = ("epoch", "skipped", "spike", "best")  # of the compact format; other fields where there is a number
_FEW = 4  # losses by source that a line has room for; of more it has none


def _shown(record: Record, key: str) -> bool:
    if key == "loss_by_source":
        return 0 < len(record.get(key) or ()) <= _FEW
    return bool(record.get(key)) if key in _SHOWN_IF_TRUE else record.get(key) is not None


# ---------------------------------------------------------------------------------------- compact

# (importance, the key without which the field is left out, pattern)
_TRAIN = (
    (1, "loss", "loss {loss:>7.4f}"),
    (7, "loss_avg", "avg {loss_avg:>7.4f}"),
    (6, "weighted", "weighted {weighted:>7.4f}"),
    (7, "loss_by_source", "{loss_by_source:each}"),
    (4, "lr", "lr {lr:.2e}"),
    (5, "grad_norm", "grad {grad_norm:>5.3g}"),
    (3, "tps", "{tps:human} tok/s"),
    (9, "tps_per_gpu", "{tps_per_gpu:human}/gpu"),
    (6, "mfu", "mfu {mfu:>5.1%}"),
    (7, "packing_efficiency", "packed {packing_efficiency:>5.1%}"),
    (8, "mem_gib", "mem {mem_gib:>5.2f} GiB"),
    (10, "epoch", "epoch {epoch}"),
    (2, "eta_s", "eta {eta_s:clock}"),
    (0, "skipped", "skipped (not finite)"),
    (0, "spike", "spike"),
)
_VAL = (
    (1, "loss", "loss {loss:.4f}"),
    (3, "perplexity", "ppl {perplexity:.2f}"),
    (4, "bits_per_byte", "bits/byte {bits_per_byte:.4f}"),
    (5, "loss_by_source", "{loss_by_source:each}"),
    (2, "best", "best so far"),
)
_EVAL = (
    (1, "core", "core {core:.4f} over {core_tasks} tasks"),
    (2, "evaluated_tasks", "{evaluated_tasks} tasks in {seconds:.1f} s"),
)


def compact(*, total_steps: int | None, per_gpu: bool = False, width: Callable[[], int] = lambda: WIDTH) -> Lines:
    """Compact lines of a run of ``total_steps``; None: nobody knows how many.

    Args:
        per_gpu: also show each GPU's share of the tokens a second.
        width: columns there are, asked at each line; what does not fit is left out, the least important first.
    """

    of, digits = ("", 5) if total_steps is None else (f"/{total_steps}", len(str(total_steps)))

    def line(record: Record, begin: str, table: Sequence[tuple[int, str, str]]) -> str:
        fields = [(rank, _FILL.vformat(text, (), record)) for rank, key, text in table if _shown(record, key)]
        return _fit([(0, begin), *fields], width())

    def step(record: Record) -> str:
        return f"step {record['step']}{of}"

    def train(record: Record) -> str:
        table = [field for field in _TRAIN if per_gpu or field[1] != "tps_per_gpu"]
        return line(record, step(record).ljust(6 + 2 * digits), table)

    def val(record: Record) -> str:
        name = record.get("name", "default")
        return line(record, f"[val{'' if name == 'default' else f' {name}'}] {step(record)}", _VAL)

    return Lines(train, val, lambda record: line(record, f"[eval] {step(record)}", _EVAL))


def _fit(fields: Sequence[tuple[int, str]], width: int) -> str:
    """The fields in their order, without the least important ones (highest numbers) where ``width`` is too small."""
    kept = list(fields)
    while len(kept) > 1 and sum(len(text) + 3 for _, text in kept) - 3 > width:
        kept.remove(max(kept, key=lambda field: field[0]))
    return " | ".join(text for _, text in kept)


# ---------------------------------------------------------------------------------------- classic


def _classic(always: str, *sometimes: tuple[str, str], end: str = "") -> Callable[[Record], str]:
    """Fields, order and formats are fixed; those of ``sometimes`` (key, pattern) come only where there is one."""

    def line(record: Record) -> str:
        patterns = [always, *(pattern for key, pattern in sometimes if _shown(record, key)), end]
        return _FILL.vformat(" | ".join(filter(None, patterns)), (), {"name": "default", **record})

    return line


CLASSIC = Lines(
    train=_classic(
        "step {step:d} | epoch {epoch:d} | loss {loss:.4f} | grad_norm {grad_norm:.4f} | lr {lr:.2e} | "
        "mem {mem_gib:.2f} GiB | tps {tps:.2f}({tps_per_gpu:.2f}/gpu) | num_label_tokens {num_label_tokens:d} | "
        "mfu {mfu:.1%} | eta {eta_s:clock}",
        ("loss_avg", "loss_avg {loss_avg:.4f}"),
        ("weighted", "weighted {weighted:.4f}"),
        ("loss_by_source", "{loss_by_source:each}"),
        ("packing_efficiency", "packed {packing_efficiency:.1%}"),
        ("skipped", "skipped (not finite)"),
        ("spike", "spike"),
    ),
    val=_classic(
        '[val] name "{name}" | step {step:d} | epoch {epoch:d} | loss {loss:.4f} | ppl {perplexity:.2f} | '
        "bpb {bits_per_byte:.4f} | num_label_tokens {tokens:d}",
        ("loss_by_source", "{loss_by_source:each}"),
        ("best", "best so far"),
    ),
    eval=_classic(
        "[eval] step {step:d} | epoch {epoch:d} | tasks {evaluated_tasks:d}",
        ("core", "core {core:.4f} over {core_tasks:d} tasks"),
        end="{seconds:.1f} s",
    ),
)
