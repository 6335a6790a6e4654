"""Where the mixture of a run changed, as its newest checkpoint has it on record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from automodel_cli.data.mixture.history import Shares, shares_read
from automodel_cli.data.position import checked_position
from automodel_cli.data.skipped import Skipped
from automodel_cli.errors import DataError

_MOST = 100
_MOST_SOURCES = 12


def data_changes(loader: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Of a checkpoint's ``loader.json``: changes, each by the tokens before it, and what the log is to say at ``step``.

    {"changes": [{"tokens": 1024, "text": "..."}], "step": 20, "tokens": 4096}; empty where nothing has changed.
    """
    try:
        position = checked_position(loader)
    except DataError:
        return {}
    shares = shares_read(position.plan, position.samples_consumed)[1:][-_MOST:]
    if not shares:
        return {}
    skipped, seq_len = Skipped.of(position.skipped), position.plan["seq_len"]
    changes = [{"tokens": skipped.left_before(one.first) * seq_len, "text": _text(one)} for one in shares]
    return {"changes": changes, "step": step, "tokens": skipped.left_before(position.samples_consumed) * seq_len}


def _text(shares: Shares) -> str:
    shown = [f"{name[:100]} {share:.3g}" for name, share in list(shares.of.items())[:_MOST_SOURCES]]
    more = len(shares.of) - len(shown)
    return f"{'moves to ' * shares.moving}{', '.join(shown)}" + (f" and {more} more sources" if more else "")
