"""Which documents validate: by hash of their number, in the amounts that were asked for."""

import numpy as np
import pytest

from automodel_cli.corpus.shuffle.splitting import TRAIN, VAL, SplitRule, document_hash, likely_fraction

FIXED = [7637746055989500354, 820493186821593422, 3165425047833370712]


def test_hash_is_fixed_for_ever() -> None:
    """These numbers decide which documents validate in corpora that exist: they must not change."""
    assert document_hash(42, "validation", np.arange(3)).tolist() == FIXED
    assert document_hash(43, "validation", np.arange(3)).tolist() != FIXED
    assert document_hash(42, "shuffle", np.arange(3)).tolist() != FIXED


def test_hash_is_uniform_and_without_collisions() -> None:
    hashes = document_hash(0, "validation", np.arange(100_000))
    assert len(np.unique(hashes)) == 100_000
    counts = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
    assert abs(counts - 6250).max() < 5 * 6250**0.5
    assert np.array_equal(hashes[777:800], document_hash(0, "validation", np.arange(777, 800)))


def choose(rule: SplitRule, lengths: list[int], first: int = 0, **left: int | None) -> list[int]:
    ordinals = first + np.arange(len(lengths))
    return rule.choose(ordinals, np.array(lengths), **left).tolist()  # type: ignore[arg-type]


def test_fraction() -> None:
    rule = SplitRule("fraction", fraction=0.25)
    chosen = choose(rule, [1] * 4000, train_left=None, val_left=None)
    assert abs(sum(chosen) - 1000) < 150
    assert choose(rule, [5] * 1000, first=3000, train_left=None, val_left=None) == chosen[3000:]


@pytest.mark.parametrize("split_at", [1, 17, 50])
def test_tokens_with_budgets_in_one_piece_or_several(split_at: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 100).tolist()
    total = sum(lengths)
    rule = SplitRule("tokens", fraction=0.2, val_tokens=400, total_tokens=total)
    train, val = rule.budgets
    assert (train, val) == (total - 400, 400)
    whole = choose(rule, lengths, train_left=train, val_left=val)

    def after(chosen: list[int]) -> tuple[int, int]:
        taken = [sum(n for n, c in zip(lengths, chosen, strict=False) if c == split) for split in (TRAIN, VAL)]
        return train - taken[TRAIN], val - taken[VAL]

    first = choose(rule, lengths[:split_at], train_left=train, val_left=val)
    train_left, val_left = after(first)
    second = choose(rule, lengths[split_at:], split_at, train_left=train_left, val_left=val_left)
    assert first + second == whole
    assert after(whole)[1] <= 0  # validation got its share


def test_likely_fraction() -> None:
    assert likely_fraction(10, None) == 0.01
    assert likely_fraction(10, 1000) == pytest.approx(0.02)
    assert likely_fraction(900, 1000) == 1.0
