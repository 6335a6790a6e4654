"""Is the order random enough? Displacements, neighbours, pairs, origin against position, and one seed against another.

Seeds and sizes are fixed, so these are facts about this order, not chances; the limits are about five standard
deviations of a uniformly random permutation, and numpy's own permutation has to pass them too.
"""

import numpy as np
import pytest

from automodel_cli.corpus.shuffle.splitting import place_of, shuffle_keys

N = 120_000
PLACES = {
    "one file": place_of(0, np.arange(N)),
    "many files": place_of(np.arange(N) // 40, np.arange(N) % 40),
    "a document a file": place_of(np.arange(N), 0),
    "every second row is bad": place_of(3, 2 * np.arange(N)),
}
ORDERS = {
    f"{kind}, seed {seed}": np.argsort(shuffle_keys(seed, places))
    for kind, places in PLACES.items()
    for seed in (0, 1, 42)
} | {"numpy": np.random.default_rng(0).permutation(N)}


@pytest.fixture(params=ORDERS.values(), ids=ORDERS.keys())
def order(request: pytest.FixtureRequest) -> np.ndarray:
    """Number of the document at each position."""
    return request.param


def test_displacement(order: np.ndarray) -> None:
    """A third of the length on average, with the variance of |i - j|; as often forwards as backwards."""
    moved = order - np.arange(N)
    assert abs(np.abs(moved).mean() - N / 3) < 5 * N / np.sqrt(18 * N)
    assert abs((moved > 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(N)
    assert (moved == 0).sum() < 8  # one on average


def test_neighbours_do_not_stay_together(order: np.ndarray) -> None:
    steps = np.diff(order)
    for distance in (1, 2, 3, 40):
        for sign in (1, -1):
            assert (steps == sign * distance).sum() < 8  # one on average


def test_order_of_pairs(order: np.ndarray) -> None:
    """Two documents, near or far apart in the source, come either way round equally often."""
    position = np.argsort(order)
    for distance in (1, 2, 7, 40, 1000, N // 2):
        before = position[distance:] > position[:-distance]
        # Pairs that overlap are not independent; 1/12 of the variance is lost or gained at most.
        assert abs(before.mean() - 0.5) < 6 * 0.5 / np.sqrt(len(before))


def test_origin_does_not_tell_position(order: np.ndarray) -> None:
    """Chi-squared over 50 x 50 regions of origin and position."""
    counts = np.histogram2d(order, np.arange(N), bins=50)[0]
    expected = N / 2500
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = 49 * 49
    assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom)


def test_autocorrelation(order: np.ndarray) -> None:
    values = order - order.mean()
    for lag in (1, 2, 3, 16, 40, 256):
        correlation = (values[lag:] * values[:-lag]).mean() / values.var()
        assert abs(correlation) < 5 / np.sqrt(N)


def test_any_run_of_the_order_is_a_fair_draw(order: np.ndarray) -> None:
    """As a validation set or a chunk would be: the mean origin of each run is in the middle."""
    for size in (100, 1000, 10_000):
        means = order[: N // size * size].reshape(-1, size).mean(axis=1)
        assert np.abs(means - (N - 1) / 2).max() < 6 * N / np.sqrt(12 * size)


def test_seeds_give_unrelated_orders() -> None:
    places = PLACES["one file"]
    positions = [np.argsort(np.argsort(shuffle_keys(seed, places))) for seed in range(6)]
    for k, first in enumerate(positions):
        for second in positions[:k]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(N)


def test_keys_are_fixed_for_ever() -> None:
    """These decide the order of what users have shuffled: they must not change."""
    found = shuffle_keys(42, place_of(np.array([0, 0, 7]), np.array([0, 1, 1_000_000])))
    assert found.tolist() == [2295611848874591249, 13892774854032812350, 12185963639171997720]
