"""Files of a weighted blend as sources, read through the loader that trains."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_megatron_file

from automodel_cli.data.megatron.domains import domains_of
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import ConfigError

T = 8
DOMAINS = [{"name": "web", "objective_weight": 1}, {"name": "code", "objective_weight": 3}]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two pairs; an id tells its file (thousands)."""
    for number in (1, 2):
        ids = list(range(1000 * number, 1000 * number + 40 * T + 1))
        write_megatron_file(tmp_path / f"m{number}", [[ids]], dtype="int32")
    return [str(tmp_path / "m1"), str(tmp_path / "m2")]


@pytest.mark.parametrize("order", ["megatron", "stateless"])
def test_rows_say_of_which_file_they_are_and_what_they_count(files, order):
    paths = [0.8, files[0], 0.2, files[1]]
    settings = {"seq_length": T, "split": "1,0,0", "order": order, "num_train_samples": 40}
    dataset = MegatronPretraining(paths, domains=DOMAINS, **settings)
    assert dataset.source_names == ("web", "code") and dataset.objective == {"web": 0.25, "code": 0.75}
    weights = []
    for (batch,) in islice(TokenLoader(dataset, global_batch_size=4, local_batch_size=4), 10):
        assert batch.sources.tolist() == (batch.input_ids[:, 0] // 1000 - 1).tolist()
        expected = np.where(batch.sources == 0, 0.25 / 0.8, 0.75 / 0.2)
        assert batch.row_weights.tolist() == pytest.approx(expected.tolist())
        weights += batch.row_weights.tolist()
    assert np.mean(weights) == pytest.approx(1, abs=0.1)
    plain = MegatronPretraining(paths, **settings)
    assert plain.source_names == ("m1", "m2") and plain.objective is None and plain.plan() == dataset.plan()


def test_files_without_weights_are_one_source():
    assert domains_of(["a", "b"], None, None).names == ()
    assert domains_of(["a"], [1.0], None).names == () and domains_of(["a"] * 257, [1.0] * 257, None).names == ()
    assert domains_of(["a", "b", "a"], [1.0, 1.0, 1.0], None).names == ("a#1", "b", "a#3")


@pytest.mark.parametrize(
    ("weights", "domains", "says"),
    [
        (None, DOMAINS, "dataset.paths 2 files without weights"),
        ([1.0, 1.0], DOMAINS[:1], "names 1 sources, dataset.paths 2 files"),
        ([1.0, 1.0], [DOMAINS[0], DOMAINS[0]], "names 1 sources"),
        ([1.0, 1.0], [DOMAINS[0], {"name": "code"}], "objective weights"),
        ([1.0, 1.0], [DOMAINS[0], {"name": "code", "objective_weight": -1}], "objective weights"),
        ([1.0, 1.0], [DOMAINS[0], {"name": "weighted", "objective_weight": 1}], "'weighted' is the name"),
    ],
)
def test_what_means_nothing_is_refused(weights, domains, says):
    with pytest.raises(ConfigError, match=says) as caught:
        domains_of(["a", "b"], weights, domains)
    assert caught.value.hint
