"""Weights of tokens: the mean over what is read is the objective, and what means nothing is refused."""

import numpy as np
import pytest

from automodel_cli.data.objective import losses_by_source, refuse_reserved, shares, token_weights, weighted_loss
from automodel_cli.errors import ConfigError


def test_a_mean_over_what_is_read_is_the_mean_by_the_objective():
    read = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    objective = shares({"a": 1, "b": 2, "c": 1}, "x")
    found = token_weights(list(objective.values()), read)
    losses = np.array([3.0, 2.0, 5.0])
    assert (read * found * losses).sum(1) == pytest.approx([(3 + 2 * 2 + 5) / 4] * 2)
    assert found[0].tolist() == pytest.approx([0.25 / 0.7, 0.5 / 0.2, 0.25 / 0.1])


def test_of_what_is_not_read_others_take_the_share():
    found = token_weights([0.5, 0.25, 0.25], np.array([[0.5, 0.5, 0.0]]))
    assert found.tolist() == [[pytest.approx(2 / 1.5), pytest.approx(1 / 1.5), 0.0]]
    with pytest.raises(ConfigError, match="reads only sources whose objective_weight is 0"):
        token_weights([1.0, 0.0], np.array([[0.5, 0.5], [0.0, 1.0]]))


def test_equal_shares_weigh_exactly_one():
    assert (token_weights([0.7, 0.3], np.array([[0.7, 0.3]])) == 1).all()


def test_the_weighted_mean_is_of_what_there_is():
    objective = {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.0}
    assert weighted_loss(objective, {"a": 2.0, "b": 4.0, "c": 1.0}) == pytest.approx(2.4)
    assert weighted_loss(objective, {"a": 2.0, "d": 9.0}) == 2.0
    assert weighted_loss(objective, {"a": 2.0}, all_of_them=True) is None
    assert weighted_loss(objective, {"d": 9.0}) is None and weighted_loss(None, {"a": 2.0}) is None


def test_a_record_has_the_sources_that_have_tokens():
    sums = [[6.0, 0.0, float("nan")], [3.0, 0.0, 2.0]]
    found = losses_by_source(["a", "b", "c"], sums, {"a": 0.5, "b": 0.5})
    assert found["tokens_by_source"] == {"a": 3, "c": 2} and found["weighted"] == 2.0
    assert found["loss_by_source"]["a"] == 2.0 and list(found["loss_by_source"]) == ["a", "c"]
    assert losses_by_source(["a"], None) == {} and "weighted" not in losses_by_source(["a"], [[1.0], [1.0]])


def test_what_means_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"x: the objective weights add up to 0"):
        shares({"a": 0.0}, "x")
    with pytest.raises(ConfigError, match="'weighted' is the name of the mean"):
        refuse_reserved(["a", "weighted"], "x")
