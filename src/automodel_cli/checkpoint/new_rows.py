"""A vocabulary that grows: weights of V ids put into a model of more.

The ids of the weights keep their rows. A new id begins as the mean of them, an average token and no random direction
(Hewitt 2021, "Initializing new word embeddings for pretrained language models").

Shapes: V ids of the weights, P padded rows of the model, D width.
"""

from __future__ import annotations

import torch

from automodel_cli.checkpoint.storage.local_shards import local_shard
from automodel_cli.distributed.world import World
from automodel_cli.models.interface import CausalLM


def vocabulary_tables(model: CausalLM) -> dict[str, torch.nn.Parameter]:
    """The weights with a row for each id, by name: embedding and head, one where they are tied."""
    roles = model.param_roles()
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if roles[name] in ("embedding", "head") and parameter.shape[0] == model.padded_vocab_size
    }


@torch.no_grad()
def fill_new_rows(model: CausalLM, known: int, world: World) -> None:
    """Give rows ``known`` to V of each table the mean of those before them, and padding zeros. All ranks call this."""
    for name, parameter in vocabulary_tables(model).items():
        shard = local_shard(name, parameter)
        rows = torch.arange(shard.values.shape[0], device=shard.values.device) + shard.offsets[0]
        columns = slice(shard.offsets[1], shard.offsets[1] + shard.values.shape[1])
        is_known = rows < known
        # Where ranks hold copies, sums and counts are counted alike often.
        sums = torch.zeros(2, parameter.shape[1], dtype=torch.float64)
        sums[0, columns] = shard.values[is_known].cpu().double().sum(dim=0)  # Apple's GPUs have no float64
        sums[1, columns] = float(is_known.sum())
        total, count = world.sum(sums)
        mean = (total / count)[columns].to(shard.values)
        shard.values[(rows >= known) & (rows < model.vocab_size)] = mean
        shard.values[rows >= model.vocab_size] = 0.0
