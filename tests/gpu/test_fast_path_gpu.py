"""The fast paths of a CUDA device against the plain ones: attention kernels, head loss, copies ahead, late results."""

import pytest
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.prefetch import prefetch_to_device
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.layers import attention_kernels
from automodel_cli.models.layers.gpt import softcapped
from automodel_cli.train.chunked_nll import _accumulates_in_fp32
from automodel_cli.train.deferred_metrics import DeferredMetrics
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def attended(kernel, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(2, 256, 3, 4, 64, generator=generator).to(CUDA, dtype).requires_grad_()
    queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = attention_kernels.AttendWith(kernel)(queries, keys, values, mask=None, dropout=0.0)
    (gradient,) = torch.autograd.grad(mixed.float().square().sum(), fused)
    return mixed.float(), gradient.float()


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient"])
def test_kernels_agree_with_the_formula(kernel):
    for found, expected in zip(attended(kernel), attended("math", torch.float32), strict=True):
        assert (found - expected).norm() <= 1e-2 * expected.norm()


def test_the_probe_times_what_is_here():
    probed = attention_kernels.probe(CUDA, rows=4, heads=4, tokens=512, head_width=64, dtype=torch.bfloat16)
    assert probed.times_ms[probed.kernel] > 0
    assert probed.kernel in probed.reason


@pytest.mark.parametrize("vocab", [50257, 50304])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 1.0])
def test_chunked_loss_is_the_plain_one(vocab, dtype, tolerance, fused, softcap):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 500, 64, generator=generator).to(CUDA)
    weight = (torch.randn(vocab, 64, generator=generator) * 0.1).to(CUDA)
    labels = torch.randint(0, 50257, (2, 500), generator=generator).to(CUDA)
    labels[0, :40] = IGNORE_INDEX
    chunked = ChunkedCrossEntropy(chunk_tokens=192)
    chunked.fused = fused
    results = []
    for loss, compute in ((MaskedCrossEntropy(), torch.float32), (chunked, dtype)):
        one, other = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cuda", compute, enabled=compute != torch.float32):
            if softcap and loss is not chunked:
                logits = torch.nn.functional.linear(one, other)[..., :50257]
                nll = loss.from_logits(softcapped(logits, softcap), labels)
            else:
                nll = loss(one, other, labels, vocab_size=50257, **({"softcap": softcap} if softcap else {}))
        results.append((nll.detach(), *torch.autograd.grad(nll, (one, other))))
    for found, expected in zip(results[1], results[0], strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


def test_products_are_added_in_fp32():
    assert _accumulates_in_fp32(CUDA, torch.bfloat16)


def test_batches_arrive_in_order_and_wide():
    updates = [[Batch(*(torch.full((2, 8), 60000 + n, dtype=torch.uint16).pin_memory(),) * 2)] for n in range(5)]
    found = [batch for (batch,) in prefetch_to_device(iter(updates), CUDA)]
    assert [int(batch.input_ids[0, 0]) for batch in found] == [60000, 60001, 60002, 60003, 60004]
    assert all(batch.labels.dtype == torch.int64 and batch.labels.is_cuda for batch in found)


def tiny(**options):
    model = build_gpt2_model(
        vocab_size=1000, n_positions=128, n_embd=128, n_layer=2, n_head=2, is_meta_device=True, **options
    )
    model.materialize(CUDA, seed=0)
    return model, build_adamw(model.parameters(), lr=1e-3, device=CUDA)


def pinned_updates(number):
    for index in range(number):
        ids = torch.randint(0, 1000, (2, 4, 128), generator=torch.Generator().manual_seed(index))
        rows = ids.to(torch.uint16).pin_memory()
        yield [Batch(rows[0], rows[1])]


def test_the_loop_waits_for_nothing_but_the_numbers_of_the_update_before():
    model, optimizer = tiny()
    model.prefer_attention("flash")
    results = DeferredMetrics(CUDA)
    seen = []
    for number, batches in enumerate(prefetch_to_device(pinned_updates(6), CUDA)):
        if number == 2:
            torch.cuda.set_sync_debug_mode("error")
        loss = ChunkedCrossEntropy()
        results.add(number, train_step(model, loss, optimizer, batches, autocast_dtype=torch.bfloat16))
        seen += results.arrived()
    torch.cuda.set_sync_debug_mode("default")
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    seen += results.all()
    assert len(seen) == 6
    assert all(numbers.num_label_tokens == 512 and not numbers.skipped for _, numbers in seen)


@pytest.mark.parametrize("residual", [None, torch.bfloat16])
def test_hundred_losses_with_the_fast_paths_are_those_without(residual):
    """Per token, bf16 against bf16: means within 5e-3 nats, single losses within 3e-2."""
    curves = []
    for fast in (False, True):
        model, optimizer = tiny()
        loss = MaskedCrossEntropy()
        if fast:
            model.prefer_attention("cudnn")
            loss = ChunkedCrossEntropy(chunk_tokens=200)
            if residual is not None:
                model.keep_residual_in(residual)
            model.compile(dynamic=False)
        curve = [
            train_step(model, loss, optimizer, batches, autocast_dtype=torch.bfloat16).loss
            for batches in prefetch_to_device(pinned_updates(100), CUDA)
        ]
        curves.append(torch.stack(curve).cpu())
    assert (curves[1].mean() - curves[0].mean()).abs() < 5e-3
    assert (curves[1] - curves[0]).abs().max() < 3e-2
