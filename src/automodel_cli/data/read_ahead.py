"""What will be read is said ahead to a data set that reads from object storage, so that no update waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from automodel_cli.data.interface import WindowDataset

_Item = TypeVar("_Item")
_REQUESTS_AHEAD = 32  # under way or done, of items that are not taken yet
_LEAST_AHEAD, _MOST_AHEAD = 3, 256  # items


def announced(
    dataset: WindowDataset, items: Iterable[_Item], offsets_of: Callable[[_Item], np.ndarray]
) -> Iterable[_Item]:
    """``items``, each told to ``dataset`` before it is taken, so far ahead that some requests are always under way.

    Args:
        offsets_of: where the rows of an item lie, int64 ``[..., K]``.
    """
    return _announced(dataset, items, offsets_of) if dataset.reads_remote else items


def _announced(
    dataset: WindowDataset, items: Iterable[_Item], offsets_of: Callable[[_Item], np.ndarray]
) -> Iterator[_Item]:
    ahead: deque[tuple[_Item, int]] = deque()
    requests = 0
    for item in items:
        offsets = offsets_of(item)
        took = dataset.expect(offsets.reshape(-1, offsets.shape[-1]))
        ahead.append((item, took))
        requests += took
        while len(ahead) >= _MOST_AHEAD or (len(ahead) > _LEAST_AHEAD and requests >= _REQUESTS_AHEAD):
            item, took = ahead.popleft()
            requests -= took
            yield item
    for item, _ in ahead:
        yield item
