"""Predicted peak memory of a step on a CUDA device against what the allocator gave out."""

import pytest
import torch

from automodel_cli.batch import Batch
from automodel_cli.distributed.recompute import recompute
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.sizing.memory import StepPlan, peak_memory
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCAB, TOKENS, ROWS, CHUNK = 50304, 512, 8, 1024


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", [None, "full"])
@pytest.mark.parametrize("head_loss", ["plain", "chunked"])
def test_the_peak_is_within_15_percent(head_loss, how, compiled):
    torch.compiler.reset()
    torch.cuda.empty_cache()
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=512, n_layer=6, n_head=8, is_meta_device=True)
    model.materialize("cuda", seed=0)
    for block in model.blocks() if how else []:
        recompute(block, how, random=False)
    if compiled:
        model.compile(dynamic=False)
    optimizer = build_adamw(model.parameters(), device="cuda")
    loss = ChunkedCrossEntropy(CHUNK) if head_loss == "chunked" else MaskedCrossEntropy()
    ids = torch.randint(0, VOCAB, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).to("cuda")
    train_step(model, loss, optimizer, [batch], autocast_dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    train_step(model, loss, optimizer, [batch], autocast_dtype=torch.bfloat16)
    plan = StepPlan(
        seq_len=TOKENS,
        local_batch_size=ROWS,
        compiled=compiled,
        head_loss=head_loss,
        chunk_tokens=CHUNK,
        recompute=how,
    )
    predicted = peak_memory(model.shape(), plan).total
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
