"""Mixtures of token files and Megatron files, read through the loader that trains."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.token_files import write_megatron_file, write_token_file

from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import AutomodelError, ConfigError, DataError

T = 8
RUN = {"global_batch_size": 4, "max_steps": 50}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Two token files and a Megatron pair; an id tells its source (thousands) and its position."""
    write_token_file(tmp_path / "web.bin", np.arange(30 * T + 1) + 1000, dtype="uint16")
    write_token_file(tmp_path / "code.bin", np.arange(12 * T + 1) + 2000, dtype="uint32")
    write_megatron_file(tmp_path / "books", [[list(range(3000, 3000 + 20 * T + 1))]], dtype="int32")
    return {
        "web": {"file_pattern": str(tmp_path / "web.bin"), "weight": 0.5},
        "code": {"file_pattern": str(tmp_path / "code.bin"), "weight": 0.3},
        "books": {"paths": str(tmp_path / "books"), "split": "1,0,0", "weight": 0.2},
    }


def rows_of(mixture: Mixture, first: int, end: int) -> np.ndarray:
    out = np.empty((end - first, T + 1), dtype=np.int64)
    mixture.read_samples(np.arange(first, end), out)
    return out


def test_rows_are_windows_of_the_source_that_the_order_names(sources):
    mixture = Mixture(sources, T, **RUN)
    rows = rows_of(mixture, 0, 200)
    assert (rows[:, 1:] - rows[:, :-1] == 1).all()
    kinds = rows[:, 0] // 1000
    assert np.bincount(kinds)[1:].tolist() == [100, 60, 40]
    for kind, windows in ((1, 30), (2, 12), (3, 20)):
        starts = (rows[kinds == kind][:, 0] % 1000) // T
        passes = [starts[at : at + windows].tolist() for at in range(0, len(starts), windows)]
        for number, one in enumerate(passes):  # no window twice before all had their turn; another order each time
            assert len(set(one)) == len(one) and (number == 0 or one != passes[number - 1][: len(one)])
            assert one != sorted(one)


def test_the_loader_hands_out_the_same_for_any_ranks_and_from_any_position(sources):
    mixture = Mixture(sources, T, **RUN)
    updates = itertools.islice(TokenLoader(mixture, **sizes(4, 4)), 6)
    inputs = np.concatenate([batch.input_ids.numpy().copy() for update in updates for batch in update])
    assert inputs.tolist() == rows_of(mixture, 0, 24)[:, :-1].tolist()
    for rank in range(2):
        loader = TokenLoader(Mixture(sources, T, **RUN), dp_rank=rank, dp_world=2, **sizes(4, 2))
        state = TokenLoader(mixture, **sizes(4, 4)).state_dict() | {"samples_consumed": 12}
        loader.load_state_dict(state)
        (first,) = next(iter(loader))
        assert first.input_ids.tolist() == rows_of(mixture, 12 + 2 * rank, 14 + 2 * rank)[:, :-1].tolist()


def sizes(total: int, local: int) -> dict[str, Any]:
    return {"global_batch_size": total, "local_batch_size": local, "num_epochs": 1}


def test_stages_move_no_cursor(sources):
    stages = [{"until": 0.5}, {"until": 1.0, "weights": {"code": 1}}]
    plain, staged = Mixture(sources, T, **RUN), Mixture(sources, T, stages=stages, **RUN)
    before, after = rows_of(staged, 0, 100), rows_of(staged, 100, 200)
    assert before.tolist() == rows_of(plain, 0, 100).tolist() and (after // 1000 == 2).all()
    code = rows_of(plain, 0, 200)
    code = code[code[:, 0] // 1000 == 2]
    seen = before[before[:, 0] // 1000 == 2]
    assert np.concatenate([seen, after])[: len(code)].tolist() == code.tolist()
    assert [stats.windows for stats in staged.source_stats()] == [20, 130, 50]
    assert staged.plan()["stages"][1] == {"from_sample": 100, "weights": {"web": 0, "code": 1, "books": 0}}


@pytest.mark.parametrize(
    ("stage", "first"), [({"until": 0.5}, 100), ({"until_step": 7}, 28), ({"until_tokens": 3.3 * 4 * T}, 12)]
)
def test_where_a_stage_ends(sources, stage, first):
    mixture = Mixture(sources, T, stages=[stage, {"weights": {"web": 1}}], **RUN)
    assert [found.first for found in mixture.order.stages] == [0, first]


def test_without_weights_sizes_are_the_weights_and_a_pass_reads_all_once(sources):
    for source in sources.values():
        del source["weight"]
    mixture = Mixture(sources, T)
    assert len(mixture) == 62
    starts = rows_of(mixture, 0, 62)[:, 0]
    assert len(set(starts.tolist())) == 62
    assert [stats.weights[0] * 62 for stats in mixture.source_stats()] == pytest.approx([20, 12, 30])


COUNTS = {3000: 20, 2000: 12, 1000: 30}  # windows of each source, by its first id


def test_a_set_to_evaluate_on_is_all_of_each_source_in_its_order_and_evenly_spread(sources):
    sources["books"]["split"] = "0,1,0"
    held_out = Mixture(sources, T, split="validation")
    batches = [(batch.input_ids.numpy().copy(), batch.sources.numpy()) for batch in EvalLoader(held_out, 5)]
    starts, names = (np.concatenate(found) for found in zip(*batches, strict=True))
    starts = starts[:, 0]
    kinds = starts // 1000 * 1000
    for kind, count in COUNTS.items():
        assert (starts[kinds == kind] - kind).tolist() == [T * at for at in range(count)]
        for rows in range(1, 63):  # of any beginning a source is its share, to a window
            assert abs((kinds[:rows] == kind).sum() - rows * count / 62) <= 1
    assert [held_out.source_names[name] for name in names] == [
        {3000: "books", 2000: "code", 1000: "web"}[kind] for kind in kinds.tolist()
    ]


def test_rows_say_of_which_source_they_are_on_every_rank(sources):
    mixture = Mixture(sources, T, **RUN)
    assert mixture.source_names == ("books", "code", "web")
    for rank in range(2):
        loader = TokenLoader(Mixture(sources, T, **RUN), dp_rank=rank, dp_world=2, **sizes(4, 1))
        for update in itertools.islice(loader, 10):
            for batch in update:
                kind = {1: "web", 2: "code", 3: "books"}[int(batch.input_ids[0, 0]) // 1000]
                assert [mixture.source_names[number] for number in batch.sources] == [kind]
                assert batch.row_weights is None
    alone = Mixture({"web": sources["web"]}, T, **RUN)
    assert alone.source_names == () and next(iter(TokenLoader(alone, **sizes(4, 4))))[0].sources is None


def test_tokens_weigh_their_share_in_the_objective_over_that_in_force_at_their_sample(sources):
    wanted = {"web": 0.2, "code": 0.5, "books": 0.3}
    given = {name: {**source, "objective_weight": 10 * wanted[name]} for name, source in sources.items()}
    ramp = [{"until": 0.5}, {"until": 1.0, "weights": {"web": 0.1, "code": 0.9}, "ramp": True}]
    mixture, plain = Mixture(given, T, stages=ramp, **RUN), Mixture(sources, T, stages=ramp, **RUN)
    assert mixture.plan() == plain.plan() and mixture.objective == pytest.approx(wanted)
    weights, names = [], []
    for update in TokenLoader(mixture, **sizes(4, 2)):
        for batch in update:
            assert batch.row_weights.dtype == torch.float32
            weights += batch.row_weights.tolist()
            names += [mixture.source_names[number] for number in batch.sources]
    share = {"web": 0.5, "code": 0.3, "books": 0.2}
    assert weights[:100] == pytest.approx([wanted[name] / share[name] for name in names[:100]])
    later = np.array(weights[100:196])  # whole pieces of 12 samples, in each of which the mean is 1
    assert later.reshape(-1, 12).mean(1) == pytest.approx(np.ones(8), rel=1e-6)
    of_code = [weight for weight, name in zip(weights[100:], names[100:], strict=True) if name == "code"]
    assert of_code == sorted(of_code, reverse=True) and of_code[0] > 1 > of_code[-1]  # it is read more and more


def test_what_is_known_of_it(sources, tmp_path):
    mixture = Mixture(sources, T, **RUN)
    known = mixture.describe()
    assert (known.tokens, known.files, known.sequences) == (30 * T + 12 * T + 20 * T + 3, 3, 200)
    backwards = Mixture(dict(reversed(sources.items())), T, **RUN)
    assert rows_of(backwards, 0, 50).tolist() == rows_of(mixture, 0, 50).tolist()
    assert mixture.token_dtype.itemsize == 4 and not mixture.labelled and mixture.max_token_id() == 3160
    with pytest.raises(DataError, match="3,160"):
        mixture.check_vocab(2090)
    other = Mixture({**sources, "web": {**sources["web"], "weight": 0.4}}, T, **RUN)
    assert other.plan_hash != mixture.plan_hash and other.fingerprint == mixture.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sources": {}}, "0 sources"),
        ({"web": {"weight": None}}, r"sources\.web has no weight"),
        ({"web": {"weight": "much"}}, r"web\.weight is 'much'"),
        ({"web": {"weight": float("nan")}}, "the weight of web is nan"),
        ({"web": {"weight": -1}}, "the weight of web is -1"),
        ({"web": {"objective_weight": 1}}, r"sources\.books has no objective_weight, others have"),
        ({key: {"objective_weight": 0} for key in ("web", "code", "books")}, "objective weights add up to 0"),
        ({key: {"objective_weight": -2} for key in ("web", "code", "books")}, r"books\.objective_weight is -2"),
        ({key: {"objective_weight": "x"} for key in ("web", "code", "books")}, r"objective_weight is 'x'"),
        (
            {
                **{key: {"objective_weight": 1} for key in ("web", "code")},
                "books": {"objective_weight": 0},
                "stages": [{"until": 0.5, "weights": {"books": 1}}, {}],
            },
            "a stage of the mixture reads only sources whose objective_weight is 0",
        ),
        ({"web": {"paths": "x"}}, "file_pattern .* or paths"),
        ({"web": {"seq_len": 5}}, r"web\.seq_len is the same for all"),
        ({"web": {"no_such": 5}}, r"web\.no_such is not known"),
        ({"web": {"mmap": [1]}}, r"sources\.web: mmap"),
        ({"web": {"file_pattern": "nowhere/*.bin"}}, "source web: .*nowhere"),
        ({"web": {"intra_document": True, "bos_token": 7}}, "books and web treat documents differently"),
        ({"books": {"order": "megatron"}}, r"books\.order is megatron"),
        ({"max_passes": 0}, "max_passes is 0"),
        ({"stages": [{"until": 0.5}, {"weights": {"wib": 1}}]}, "'wib', which is no source"),
        ({"stages": [{"until": 0.5}, {"weights": {"web": 0}}]}, "weights add up to 0"),
        ({"stages": [{}, {"until": 1.0}]}, "has no end, and another"),
        ({"stages": [{"until": 0.5}, {"until": 0.4}, {}]}, "ends with sample 80, the stage before it with 100"),
        ({"stages": [{"until": 1.5}]}, "until is 1.5"),
        ({"stages": [{"until_step": 10**30}, {}]}, "until_step is 1e[+]30"),
        ({"stages": [{"until_tokens": 1e300}, {}]}, "until_tokens is 1e[+]300"),
        ({"stages": [{"until_step": step} for step in range(1, 102)]}, "101 stages"),
        ({"web": {"weight": 1e308}, "code": {"weight": 1e308}}, "weights add up to inf"),
        ({"max_passes": float("nan")}, "max_passes is nan"),
        ({"stages": [{"until": 0.5, "until_step": 3}, {}]}, "until and until_step"),
        ({"stages": [{"till": 0.5}]}, r"stages\[0\]\.till is not known"),
        ({"stages": [{"until": 0.5}], "max_steps": None}, "length is not known"),
        ({"stages": [{"ramp": True}]}, "a ramp without an end"),
    ],
)
def test_what_means_nothing_is_refused(sources, change, says):
    given = {name: {**source, **change.get(name, {})} for name, source in sources.items()}
    own = {key: value for key, value in change.items() if key not in given}
    with pytest.raises(AutomodelError, match=says) as caught:
        Mixture(**{"sources": given, "seq_len": T, **RUN, **own})
    assert isinstance(caught.value, ConfigError | DataError) and caught.value.hint


def test_a_run_reads_no_source_more_often_than_it_may(sources):
    mixture = Mixture(sources, T, max_passes=5, **RUN)
    mixture.check_run(200)
    mixture.check_run(None)  # until the time is over: not known
    with pytest.raises(DataError, match=r"code would be read 10 times, dataset\.max_passes is 5"):
        mixture.check_run(400)  # two epochs


def test_sources_of_two_tokenizers_are_refused(corpus):
    one = corpus({"a.bin": np.arange(100) % 50}, "one")
    two = corpus({"a.bin": np.arange(100) % 50}, "two")
    replace(two, tokenizer={**two.tokenizer, "name": "other", "fingerprint": "xxh3:fedcba9876543210"}).write()
    with pytest.raises(DataError, match="source two was tokenized with other"):
        Mixture({"one": {"file_pattern": str(one.folder)}, "two": {"file_pattern": str(two.folder)}}, T)
