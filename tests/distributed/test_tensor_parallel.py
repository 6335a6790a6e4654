"""Which rows of a fused matrix go where, and what a plan may say."""

import pytest
import torch

from automodel_cli.distributed.tensor_parallel import rows_to_move


@pytest.mark.parametrize(("rows", "parts", "size"), [(12, 3, 2), (24, 3, 4), (8, 1, 2), (30, 3, 5)])
def test_each_rank_gets_its_piece_of_every_part(rows, parts, size):
    """Played through without ranks: what arrives, in order of senders, is the rank's piece of each part."""
    blocks = torch.arange(rows).chunk(size)
    plans = [rows_to_move(rows, parts, size, rank) for rank in range(size)]
    for rank in range(size):
        sent = [blocks[sender][plans[sender][0][rank]] for sender in range(size)]
        assert [len(part) for part in sent] == plans[rank][1]
        expected = torch.cat([part.chunk(size)[rank] for part in torch.arange(rows).chunk(parts)])
        assert torch.equal(torch.cat(sent), expected)
