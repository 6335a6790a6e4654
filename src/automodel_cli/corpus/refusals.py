"""A text that a tokenizer cannot take: which file and document it is, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from automodel_cli.corpus.units import Texts, Unit
from automodel_cli.errors import DataError, is_panic

_OF_LIBRARIES = (Exception, ValueError, OverflowError, MemoryError)  # exactly these; others are bugs of ours
Result = TypeVar("Result")


def naming_refusals(
    encode: Callable[[], Result], unit: Unit, found: Texts, document: Callable[[], int], engine: str
) -> Result:
    """What ``encode`` gives for the texts ``found`` in ``unit``; ``document()`` is the one it was at.

    Raises:
        DataError: the library refused a text or gave up on it.
    """
    try:
        return encode()
    except BaseException as error:
        if not is_panic(error) and type(error) not in _OF_LIBRARIES:
            raise
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise DataError(
            f"{engine} cannot encode {_place(unit, found, document())}: {reason}",
            "leave that document out, or use another --engine or --tokenizer",
        ) from None


def _place(unit: Unit, found: Texts, document: int) -> str:
    """Where a document is, with its beginning."""
    number = found.numbers[document] if document < len(found.numbers) else document
    if unit.kind == "files":
        place = unit.payload[number][1]
    elif unit.kind == "piece":
        place = f"{unit.name} from byte {unit.start:,} on"
    else:
        after = f" after byte {unit.start:,}" if unit.start else ""
        place = f"row {number + 1:,}{after} of {unit.name}"
    text = found.texts[document] if document < len(found.texts) else ""
    while isinstance(text, (tuple, list)):
        text = text[0] if text else ""
    return f"{place} ({text[:40]!r})"
