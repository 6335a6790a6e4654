"""Words for people: counts, sizes, durations, the first line of an error.

Imports nothing beyond the standard library: ``--help`` needs it.
"""

from __future__ import annotations

import math


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 document``, ``2,000 documents``; ``many`` where the plural is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def human(number: float, *, billions: str = "B") -> str:
    """``124.4M``: three or four digits and a unit."""
    for limit, unit in ((1e12, "T"), (1e9, billions), (1e6, "M"), (1e3, "K")):
        if abs(number) >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:,.0f}"


def short(number: float, digits: int = 3) -> str:
    """``169M``, ``2.26B``: so many digits in all, trailing zeros left out."""
    number = float(f"{number:.{digits}g}")  # 999,999 is 1M and not 1e+03K
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.{digits}g}{unit}"
    return f"{number:.{digits}g}"


def binary_size(count: float) -> str:
    """Bytes with a binary unit: ``512 B``, ``86.1 MiB``, ``230 MiB``, ``1.5 GiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:,.{int(power > 0 and count < 100)}f} {units[power]}"


def clock(seconds: float | None) -> str:
    """Seconds as ``h:mm:ss``, with days in front from 24 hours on: ``1:23:45``, ``2d 3:04:05``; ``n/a`` for None."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock


def duration(seconds: float) -> str:
    """``1h05m`` or ``3m07s``: of something that is over or under way."""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"


def rough_duration(seconds: float) -> str:
    """``40 s``, ``4 minutes``, ``3 hours``, ``12 days``: an estimate, so no finer than that."""
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit_s:
            return f"{seconds / unit_s:,.0f} {name}"
    return f"{seconds:.0f} s"


def age(seconds: float) -> str:
    """The two largest units: ``3 d 4 h``, ``4 h 5 min``, ``5 min``, ``20 s``."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days:.0f} d {hours % 24:.0f} h"
    if hours:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min" if minutes else f"{seconds:.0f} s"


def decimal(value: float | None, digits: int = 4, *, none: str = "") -> str:
    """A number with so many decimals; ``none`` for None."""
    return none if value is None else f"{value:.{digits}f}"


def first_line(error: BaseException, longest: int = 200) -> str:
    """The first line of what an exception says, cut; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:longest] if lines else type(error).__name__


def named_error(error: BaseException, longest: int = 200) -> str:
    """``ValueError: what it says``, on one line."""
    name = type(error).__name__
    return f"{name}: {first_line(error, longest)}" if str(error).strip() else name
