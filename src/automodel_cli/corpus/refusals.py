"""A text that a tokenizer cannot take: which file and document it is, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from automodel_cli.corpus.units import Texts, Unit
from automodel_cli.errors import DataError

Result = TypeVar("Result")


def naming_refusals(
    encode: Callable[[], Result], unit: Unit, found: Texts, document: Callable[[], int]
) -> Result:
    """What ``encode`` gives for the texts ``found`` in ``unit``; ``document()`` is the one it was at.

    Raises:
        DataError: the engine refused a text or gave up on it (``engines`` says which and why), or memory ran out.
    """
    try:
        return encode()
    except DataError as error:
        where, message, hint = _place(unit, found, document()), error.message, error.hint
        raise DataError(f"{where}: {message}", f"leave that document out; {hint}" if hint else "") from error
    except MemoryError:
        where = _place(unit, found, document())
        raise DataError(
            f"{where}: out of memory", "leave that document out, or use fewer processes"
        ) from None


def _place(unit: Unit, found: Texts, document: int) -> str:
    """Where a document is."""
    number = found.numbers[document] if document < len(found.numbers) else document
    if unit.kind == "files":
        return str(unit.payload[number][1])
    if unit.kind == "piece":
        return f"{unit.name} from byte {unit.start:,} on"
    after = f" after byte {unit.start:,}" if unit.start else ""
    return f"row {number + 1:,}{after} of {unit.name}"
