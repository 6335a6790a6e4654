"""Width, batch and multipliers of a depth, against the counts and figures of nanochat and a fork of it."""

import pytest

from automodel_cli.models.gpt_config import GPTConfig
from automodel_cli.sizing.depth import Size, batch_tokens, multipliers, width_of

REFERENCE_BATCH = 2**19


def size(depth: int, head_dim: int = 64, **options) -> Size:
    width = width_of(depth, 64, head_dim)
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // head_dim}
    return Size(depth, width, GPTConfig(**shape, **options).counts().scaling)


def forked(depth: int) -> Size:
    return size(depth, vocab_size=50304, value_embeddings=True)


@pytest.mark.parametrize(("depth", "width"), [(6, 384), (12, 768), (20, 1280), (7, 448)])
def test_width_is_the_aspect_times_the_depth_in_whole_heads(depth, width):
    assert width_of(depth, 64, 64) == width
    assert width_of(7, 64, 128) == 512
    assert width_of(3, 24.5, 8) == 80


@pytest.mark.parametrize(
    ("depth", "batch", "lr", "weight_decay"), [(6, 18, 0.707, 0.292), (12, 19, 1, 0.1), (20, 20, 1.414, 0.0382)]
)
def test_power_lines(depth, batch, lr, weight_decay):
    """Worked out for a fork of nanochat with GPT-2's vocabulary, base weight decay 0.1."""
    here, reference = forked(depth), forked(12)
    tokens = batch_tokens("power_lines", here, reference, REFERENCE_BATCH)
    assert tokens == 2**batch
    found = multipliers("power_lines", here, reference, tokens / REFERENCE_BATCH)
    assert found.adamw_lr == found.muon_lr == pytest.approx(lr, abs=5e-4)
    assert 0.1 * found.weight_decay == pytest.approx(weight_decay, rel=2e-3)


@pytest.mark.parametrize(
    ("depth", "batch", "weight_decay"), [(6, 18, 0.940), (12, 19, 0.280), (20, 20, 0.1002), (24, 20, 0.0597)]
)
def test_power_lines_as_nanochat_itself_has_them(depth, batch, weight_decay):
    def own(depth):
        # 12 channels a gate there, and 24 + 12 of its own for smear and the like: too few to matter
        return size(depth, 128, vocab_size=32768)

    tokens = batch_tokens("power_lines", own(depth), own(12), REFERENCE_BATCH)
    assert tokens == 2**batch
    found = multipliers("power_lines", own(depth), own(12), tokens / REFERENCE_BATCH)
    assert 0.28 * found.weight_decay == pytest.approx(weight_decay, rel=2e-3)


@pytest.mark.parametrize(("depth", "lr", "weight_decay"), [(6, 1.414, 0.4), (12, 1, 0.1), (20, 0.775, 0.036)])
def test_the_older_rules_point_the_other_way(depth, lr, weight_decay):
    here, reference = forked(depth), forked(12)
    assert batch_tokens("width", here, reference, REFERENCE_BATCH) == REFERENCE_BATCH
    found = multipliers("width", here, reference, 1.0)
    assert (found.adamw_lr, found.muon_lr) == (pytest.approx(lr, abs=5e-4), 1.0)
    assert 0.1 * found.weight_decay == pytest.approx(weight_decay)
