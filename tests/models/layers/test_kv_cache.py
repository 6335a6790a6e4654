"""Keys and values accumulate per layer; the length counts whole forwards."""

import torch

from automodel_cli.models.layers.kv_cache import KVCache


def test_layers_grow_on_their_own_and_together():
    cache = KVCache()
    pieces = [torch.arange(2 * 3 * tokens * 4.0).view(2, 3, tokens, 4) for tokens in (5, 1)]
    for piece in pieces:
        for layer in (0, 1):
            keys, values = cache.extend(layer, piece + layer, -piece)
        cache.advance(piece.shape[2])
    assert cache.length == 6
    assert torch.equal(keys, torch.cat([piece + 1 for piece in pieces], 2))
    assert torch.equal(values, -torch.cat(pieces, 2))
