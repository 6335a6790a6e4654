"""Rows that come and go: each keeps what it had, whoever leaves and however the space grows."""

from __future__ import annotations

import random

import torch

from automodel_cli.models.layers.kv_cache import KVCache, SlotCache

HEADS, WIDTH, LAYERS = 2, 3, 2


def read(lengths: list[int], numbers: random.Random) -> tuple[KVCache, list[list[float]]]:
    """A cache as prompts leave it, and what every row has in it."""
    rows = [[numbers.random() for _ in range(length)] for length in lengths]
    longest = max(lengths)
    values = torch.tensor([[*row, *[-1.0] * (longest - len(row))] for row in rows])
    cache = KVCache()
    for layer in range(LAYERS):
        piece = values[:, None, :, None].expand(-1, HEADS, -1, WIDTH)
        cache.extend(layer, piece + layer, -piece - layer)
    cache.advance(longest)
    return cache, rows


def test_rows_keep_what_is_theirs():
    numbers = random.Random(0)
    cache, rows = SlotCache(), []
    for _ in range(150):
        what = numbers.random()
        if what < 0.15 or not rows:
            cache_of_new, new = read([numbers.randrange(1, 9) for _ in range(numbers.randrange(1, 5))], numbers)
            cache.adopt(cache_of_new, [len(row) for row in new])
            rows += new
        elif what < 0.4:
            place = numbers.randrange(len(rows))
            cache.drop(place)
            rows[place] = rows[-1]
            rows.pop()
        else:
            for row in rows:
                row.append(numbers.random())
            piece = torch.tensor([row[-1] for row in rows])[:, None, None, None].expand(-1, HEADS, 1, WIDTH)
            assert cache.positions(1, torch.device("cpu"))[:, 0].tolist() == [len(row) - 1 for row in rows]
            for layer in range(LAYERS):
                keys, values = cache.extend(layer, piece + layer, -piece - layer)
                assert keys.shape == (len(rows), HEADS, max(map(len, rows)), WIDTH)
                assert keys.isfinite().all() and values.isfinite().all()
                for found, row in zip(keys, rows, strict=True):
                    assert torch.equal(found[1, : len(row), 2], torch.tensor(row) + layer)
                for found, row in zip(values, rows, strict=True):
                    assert torch.equal(found[0, : len(row), 0], -torch.tensor(row) - layer)
            cache.advance(1)
        assert cache.length == max(map(len, rows), default=0) and cache.lengths.tolist() == list(map(len, rows))
