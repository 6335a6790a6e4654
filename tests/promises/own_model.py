"""A user's own module, named by its file in the configuration."""

import torch
from torch import nn


class OwnModel(nn.Module):
    """A token table, layers that mix each token with the mean of those before it, a head."""

    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.table = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.lm_head = nn.Linear(width, vocab_size)

    def forward(self, input_ids):
        x = self.table(input_ids)
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        for layer in self.layers:
            x = x + torch.tanh(layer(torch.cat([x, x.cumsum(1) / count], dim=-1)))
        return self.lm_head(x)
