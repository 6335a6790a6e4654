"""Large numbers as people write them: ``500M`` tokens, ``16G`` or ``256MiB`` of memory."""

from __future__ import annotations

import re
from typing import Any

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_SUFFIXES |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_amount(value: Any) -> Any:
    """``"500M"``, ``"1.5B"``, ``"10_000"``, ``"256MiB"`` -> int; what is no amount passes unchanged."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([\d_]+(?:\.\d+)?)\s*([KMBGT]?|[KMGT]IB)", value.strip().upper())
    if match is None:
        return value
    amount = float(match[1]) * _SUFFIXES[match[2]] if "." in match[1] else int(match[1]) * _SUFFIXES[match[2]]
    return int(amount) if amount == int(amount) else value


def format_amount(amount: int) -> str:
    """The shortest exact spelling: 500_000_000 -> ``500M``, 1_500_000_000 -> ``1.5B``, 1_234_567 -> ``1234567``."""
    for suffix, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if amount >= size and amount % (size // 10) == 0:
            return f"{amount / size:g}{suffix}"
    return str(amount)
