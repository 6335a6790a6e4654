"""Plain or chunked: by memory on a GPU, by the clock on a CPU, and small logits without a look at it."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.train import loss_choice
from automodel_cli.train.loss_choice import pick_loss

LARGE = {"vocab_size": 50304, "tokens": 512, "width": 64}  # 0.24 GiB, three times faster in chunks


@pytest.fixture
def clock(monkeypatch):
    """Sets what the losses take, in seconds; without that, timing is an error."""

    def told(plain: float, chunked: float) -> list[tuple[int, ...]]:
        asked: list[tuple[int, ...]] = []
        times = {"plain": plain, "chunked": chunked}
        monkeypatch.setattr(loss_choice, "_best_times", lambda *size: asked.append(size) or times)
        return asked

    loss_choice._faster.cache_clear()
    monkeypatch.setattr(loss_choice, "_best_times", lambda *size: pytest.fail("nothing is to be timed"))
    yield told
    loss_choice._faster.cache_clear()


def test_on_a_gpu_memory_decides(clock):
    for tokens, expected in ((8192, "chunked"), (512, "plain")):
        chosen, reason = pick_loss(vocab_size=50304, tokens=tokens, width=64, device="cuda")
        assert chosen == expected
        assert "GiB" in reason


def test_small_logits_are_taken_whole_untimed(clock):
    assert pick_loss(vocab_size=65, tokens=16_384, width=128)[0] == "plain"


@pytest.mark.parametrize(
    ("plain", "chunked", "expected"),
    [(0.042, 0.016, "chunked"), (0.016, 0.016, "chunked"), (0.015, 0.016, "chunked"), (0.01, 0.016, "plain")],
)
def test_on_a_cpu_the_faster_one_is_taken(clock, plain, chunked, expected):
    clock(plain, chunked)
    chosen, reason = pick_loss(**LARGE)
    assert chosen == expected
    assert reason == f"chunked 16 ms, plain {1e3 * plain:.0f} ms for 333 tokens"


def test_what_was_timed_is_not_timed_again(clock):
    asked = clock(2.0, 1.0)
    for tokens in (512, 4096, 1 << 20):
        pick_loss(vocab_size=50304, tokens=tokens, width=64)
    assert asked == [(333, 64, 50304, None)]


def test_timing_disturbs_nothing():
    before = torch.get_rng_state()
    with torch.no_grad():
        times = loss_choice._best_times(8, 16, 256, torch.bfloat16)
    assert set(times) == {"plain", "chunked"} and all(seconds > 0 for seconds in times.values())
    assert torch.equal(torch.get_rng_state(), before)
