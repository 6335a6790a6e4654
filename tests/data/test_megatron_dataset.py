"""``MegatronPretraining``: what megatron-core made (golden), through the loaders, and across interruptions."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.token_files import MegatronReader, write_megatron_file

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.data.arguments import MegatronArguments
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.megatron_dataset import CACHE_FOLDER, MegatronPretraining, samples_needed
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import ConfigError, DataError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "megatron"
SHARED = Path(__file__).resolve().parents[2] / "../shared/data/megatron_golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())
SPLITS = ("train", "valid", "test")
EOD = 40


class Stub:
    """The tokenizer of the golden cases."""

    eod = EOD

    def __init__(self, pad: int = -1) -> None:
        self.pad = pad

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"name": "stub", "pad": self.pad}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the golden files, and the current one: descriptions hold paths as they are given."""
    folder = tmp_path / "files"
    folder.mkdir()
    for path in GOLDEN.glob("?.*"):
        shutil.copy(path, folder)
    monkeypatch.chdir(folder)
    return folder


def assert_same(found: Any, expected: np.ndarray) -> None:
    found = np.asarray(found)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def small(tmp_path: Path, lengths: list[int], name: str = "x") -> Path:
    """Documents of the given lengths; the tokens count up through the file."""
    ends = np.cumsum([0, *lengths])
    documents = [[list(range(begin, end))] for begin, end in itertools.pairwise(ends.tolist())]
    write_megatron_file(tmp_path / name, documents, dtype="int32")
    return tmp_path / name


# ------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("name", CASES)
def test_arrays_samples_and_names_of_megatron_core(name: str, files: Path) -> None:
    arguments = dict(CASES[name])
    sizes, tokenizer = arguments.pop("sizes"), Stub(arguments.pop("pad", -1))
    stored = np.load(GOLDEN / f"{name}.npz")
    numbers = dict(zip(("num_train_samples", "num_val_samples", "num_test_samples"), sizes, strict=True))
    compared = 0
    for split in SPLITS:
        if f"{split}/length" not in stored.files:
            with pytest.raises(ConfigError, match="leaves nothing"):
                MegatronPretraining(tokenizer=tokenizer, splits_to_build=split, **arguments)
            continue
        dataset = MegatronPretraining(
            tokenizer=tokenizer, splits_to_build=split, index_names="megatron", **numbers, **arguments
        )
        _assert_split(dataset, split, stored)
        compared += 1
    assert compared >= 2


def _assert_split(dataset: MegatronPretraining, split: str, stored: Any) -> None:
    assert len(dataset.order) == stored[f"{split}/length"]
    if f"{split}/dataset_index" in stored.files:
        assert_same(dataset.order.blend.dataset_index, stored[f"{split}/dataset_index"])
        assert_same(dataset.order.blend.dataset_sample_index, stored[f"{split}/dataset_sample_index"])
    else:
        assert dataset.order.blend is None
    for number, indices in enumerate(dataset.order.indices):
        for name in ("document_index", "sample_index", "shuffle_index"):
            assert_same(getattr(indices, name), stored[f"{split}/{number}/{name}"])
        stem = f"{stored[f'{split}/{number}/hash']}-GPTDataset-{split}"
        assert (Path(CACHE_FOLDER) / f"{stem}-shuffle_index.npy").exists()
    fields = [key for key in stored.files if key.startswith(f"{split}/sample/")]
    for key in fields:
        for number, expected in enumerate(stored[key]):
            assert_same(dataset[number][key.rpartition("/")[2]], expected)
    assert len(fields) >= 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
@pytest.mark.parametrize(
    ("case", "paths", "sizes", "split"),
    [
        ("single", ["a"], (3000, 20, None), "90,10,0"),
        ("blend_weighted", ["0.3", "a", "0.7", "b"], (3000, 100, 20), "90,5,5"),
        ("blend_unweighted", ["a", "b", "c"], (None, 100, None), "90,10,0"),
    ],
)
def test_reference_samples(case: str, paths: list[str], sizes: tuple[Any, ...], split: str, tmp_path: Path) -> None:
    stored = np.load(SHARED / f"{case}.npz")
    prefixes = [str(SHARED / f"{item}_text_document") if item.isalpha() else item for item in paths]
    for name, size in zip(SPLITS, sizes, strict=True):
        if f"{name}/len" not in stored.files:
            continue
        dataset = MegatronPretraining(
            prefixes,
            64,
            split=split,
            splits_to_build=name,
            index_mapping_dir=tmp_path,
            num_train_samples=size,
            num_val_samples=size,
            num_test_samples=size,
        )
        assert len(dataset.order) == stored[f"{name}/len"]
        if dataset.order.blend is not None:
            assert_same(dataset.order.blend.dataset_index, stored[f"{name}/dataset_index"])
        for field in ("tokens", "labels", "loss_mask", "position_ids"):
            for number, expected in enumerate(stored[f"{name}/sample/{field}"]):
                assert_same(dataset[number][field], expected)


# ------------------------------------------------------------------------------------------- loaders


@pytest.mark.parametrize("order", ["megatron", "stateless"])
@pytest.mark.parametrize("local_batch_size", [1, 3])
def test_the_loader_serves_the_samples_in_order(order: str, local_batch_size: int, files: Path) -> None:
    dataset = MegatronPretraining(["a", "b"], 16, split="100,0,0", order=order)
    loader = TokenLoader(dataset, global_batch_size=6, local_batch_size=local_batch_size)
    number = 0
    for update in itertools.islice(loader, 12):
        for batch in update:
            for inputs, labels in zip(batch.input_ids, batch.labels, strict=True):
                item = dataset[number]
                assert torch.equal(inputs, item["tokens"])
                assert torch.equal(labels, item["labels"])
                number += 1
    assert number == 72


@pytest.mark.parametrize("order", ["megatron", "stateless"])
def test_a_run_goes_on_where_it_was_with_any_number_of_ranks(order: str, files: Path) -> None:
    def loader(rank: int = 0, world: int = 1) -> TokenLoader:
        dataset = MegatronPretraining(["1", "a", "3", "b"], 16, num_train_samples=200, order=order)
        return TokenLoader(
            dataset, global_batch_size=8, local_batch_size=2, dp_rank=rank, dp_world=world, num_epochs=None
        )

    whole = [torch.cat([b.input_ids for b in update]) for update in itertools.islice(loader(), 30)]
    stopped = loader()
    for _ in itertools.islice(stopped, 7):
        pass
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["samples_consumed"] == 56
    ranks = [loader(rank, 4) for rank in range(4)]
    for rank in ranks:
        rank.load_state_dict(state)
    for expected, *updates in zip(whole[7:], *ranks, strict=False):
        rows = torch.cat([batch.input_ids for update in updates for batch in update])
        assert torch.equal(rows, expected)


def test_batches_carry_what_the_flags_ask_for(files: Path) -> None:
    flags = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True}
    dataset = MegatronPretraining("a", 20, Stub(), split="1,0,0", create_attention_mask=True, **flags)
    assert dataset.labelled
    seen = 0
    for update in itertools.islice(TokenLoader(dataset, global_batch_size=4, local_batch_size=2), 8):
        for batch in update:
            for row in range(2):
                item = dataset[seen]
                kept = item["loss_mask"].bool()
                assert batch.labels is not None and batch.segment_ids is not None
                assert torch.equal(batch.labels[row] != IGNORE_INDEX, kept)
                assert torch.equal(batch.labels[row][kept], item["labels"][kept])
                assert torch.equal(batch.position_ids[row], item["position_ids"])
                segments = batch.segment_ids[row]
                causal = torch.ones(20, 20).tril().bool()
                allowed = causal & (segments[:, None] == segments[None, :])
                assert torch.equal(~allowed, item["attention_mask"][0])
                seen += 1
    assert seen == 32


def test_validation_reads_its_samples_once_padding_ignored(files: Path) -> None:
    dataset = MegatronPretraining(
        "c", 16, split="0,1,0", splits_to_build="val", drop_last_partial_validation_sequence=False
    )
    batches = list(EvalLoader(dataset, 5))
    rows = torch.cat([batch.input_ids for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    assert len(rows) == len(dataset) == -(-(MegatronReader("c").file.num_tokens - 1) // 16)
    padded = (labels == IGNORE_INDEX).sum(dim=1)
    assert (padded > 0).sum() == 1  # the last sample of the split, wherever it was shuffled to
    assert int((labels != IGNORE_INDEX).sum()) == MegatronReader("c").file.num_tokens - 1


def test_positional_reads_give_the_same(files: Path) -> None:
    for order in ("megatron", "stateless"):
        mapped = MegatronPretraining(["a", "c"], 16, split="1,0,0", order=order)
        read = MegatronPretraining(["a", "c"], 16, split="1,0,0", order=order, mmap_bin_files=False)
        offsets = mapped.sample_offsets(np.arange(40))
        out = np.empty((2, 40, 17), np.int64)
        mapped.read_windows(offsets, out[0])
        read.read_windows(offsets, out[1])
        np.testing.assert_array_equal(out[0], out[1])


def test_a_copy_in_another_process_reads_the_same(files: Path) -> None:
    for order in ("megatron", "stateless"):
        dataset = MegatronPretraining(["a", "b"], 16, order=order)
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy[3]["tokens"], dataset[3]["tokens"])


# ------------------------------------------------------------------------------------------- plans


def test_a_longer_run_within_the_same_epochs_goes_on(tmp_path: Path) -> None:
    prefix = small(tmp_path, [50] * 40)  # 2,000 tokens: 124 samples of 16 an epoch
    plans = [
        MegatronPretraining(prefix, 16, split="1,0,0", trainer_max_steps=steps, global_batch_size=4).plan()
        for steps in (10, 31, 32)
    ]
    assert plans[0] == plans[1]
    assert plans[1]["epochs"] == [1] and plans[2]["epochs"] == [2]  # another order: refused with this difference
    shorter, longer = (
        MegatronPretraining(prefix, 16, split="1,0,0", trainer_max_steps=steps, global_batch_size=4)
        for steps in (10, 31)
    )
    for number in range(40):
        assert torch.equal(shorter[number]["tokens"], longer[number]["tokens"])


@pytest.mark.parametrize("paths", [["a", "b", "c"], ["30", "a", "70", "b"]])
def test_stateless_never_changes_what_was_seen(paths: list[str], files: Path) -> None:
    shorter, longer = (
        MegatronPretraining(paths, 16, split="1,0,0", order="stateless", num_train_samples=samples)
        for samples in (50, 5000)
    )
    assert shorter.plan() == longer.plan()
    offsets = longer.sample_offsets(np.arange(50))
    np.testing.assert_array_equal(shorter.sample_offsets(np.arange(50)), offsets)
    assert (len(shorter), len(longer)) == (50, 5000)
    assert not Path(CACHE_FOLDER).exists()


def test_another_plan_is_refused_with_the_difference(files: Path) -> None:
    def loader(**arguments: Any) -> TokenLoader:
        return TokenLoader(MegatronPretraining("a", 16, **arguments), global_batch_size=2, local_batch_size=2)

    state = loader().state_dict()
    for arguments, words in (
        ({"seed": 1}, "seed 1234 in the checkpoint, 1 now"),
        ({"split": "8,2,0"}, "bounds"),
        ({"order": "stateless"}, "order 'megatron' in the checkpoint"),
        ({"num_train_samples": 3000}, "epochs"),
    ):
        with pytest.raises(DataError, match=words):
            loader(**arguments).load_state_dict(state)


def test_the_data_may_be_moved_and_may_not_be_changed(tmp_path: Path) -> None:
    here = small(tmp_path, [30] * 20)
    (tmp_path / "there").mkdir()
    there = small(tmp_path / "there", [30] * 20, name="y")
    other = small(tmp_path, [30] * 19 + [31], name="z")
    plans = [MegatronPretraining(prefix, 16, split="1,0,0").plan() for prefix in (here, there, other)]
    assert plans[0] == plans[1]
    assert plans[0]["data"] != plans[2]["data"]


def test_a_cache_of_other_data_is_not_used(tmp_path: Path) -> None:
    """The same prefix, preprocessed again: megatron-core goes on with the old index."""
    prefix = small(tmp_path, [40] * 100)
    before = MegatronPretraining(prefix, 16, split="1,0,0")
    assert before.notes == []
    small(tmp_path, [40] * 30)
    os.utime(tmp_path / "x.idx", (1, 1))
    after = MegatronPretraining(prefix, 16, split="1,0,0")
    assert len(after) == (30 * 40 - 1) // 16
    assert "the data has changed since" in after.notes[0]
    assert max(int(item["tokens"].max()) for item in after) < 30 * 40
    assert MegatronPretraining(prefix, 16, split="1,0,0").notes == []


# ------------------------------------------------------------------------------------------- samples wanted


def run_of(
    size: int | None = None, steps: int | None = None, interval: int | None = None, batches: float | None = 1
) -> MegatronArguments:
    return MegatronArguments(
        "x",
        global_batch_size=size,
        trainer_max_steps=steps,
        trainer_val_check_interval=interval,
        trainer_limit_val_batches=batches,
    )


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        # the guide's own log
        (run_of(512, 18500, 250), {"train": 9_472_000, "valid": 37_888, "test": None}),
        (run_of(512, None, 250), {"train": None, "valid": None, "test": None}),
        (run_of(8, 10, 250), {"train": 80, "valid": 8, "test": None}),  # NeMo: no sample to consume
        (run_of(8, 10, None), {"train": 80, "valid": 8, "test": None}),
        (run_of(8, 10, 5, None), {"train": 80, "valid": None, "test": None}),
        (run_of(), {"train": None, "valid": None, "test": None}),
    ],
)
def test_samples_a_run_needs(run: MegatronArguments, expected: dict[str, int | None]) -> None:
    assert {split: samples_needed(run, split) for split in SPLITS} == expected


@pytest.mark.parametrize("batches", [0, -1, 0.5])
def test_a_share_of_validation_batches_is_not_understood(batches: float) -> None:
    with pytest.raises(ConfigError, match="trainer_limit_val_batches"):
        samples_needed(run_of(8, 10, 5, batches), "valid")


def test_given_numbers_win(files: Path) -> None:
    known = {"trainer_max_steps": 10, "global_batch_size": 8, "trainer_val_check_interval": 5}
    assert len(MegatronPretraining("a", 16, **known)) == 80
    assert len(MegatronPretraining("a", 16, num_train_samples=33, **known)) == 33
    valid = MegatronPretraining("a", 16, splits_to_build="validation", **known)
    assert len(valid) == 16
    assert "each validation reads up to 16 samples" in valid.notes[0]
    given = MegatronPretraining("a", 16, splits_to_build="validation", num_val_samples=5, **known)
    assert len(given) == 5
    assert given.notes == []


def test_a_blend_without_weights_is_read_once_at_most(files: Path) -> None:
    dataset = MegatronPretraining(["a", "b"], 16, num_train_samples=10**6)
    assert len(dataset) == len(dataset.order) == sum(dataset.order.lengths)
    assert [round(stats.epochs, 1) for stats in dataset.blend_stats()] == [1.0, 1.0]


def test_a_single_weight_says_nothing(files: Path) -> None:
    plain = MegatronPretraining("a", 16, num_train_samples=50)
    weighted = MegatronPretraining(["1", "a"], 16, num_train_samples=50)
    assert weighted.order.blend is None
    assert torch.equal(plain[7]["tokens"], weighted[7]["tokens"])


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"paths": ["1", "a", "1", "b"]}, ConfigError, "weights in dataset.paths need a number of samples"),
        ({"paths": ["1", "a", "0", "b"], "num_train_samples": 9}, ConfigError, "weight 2 .* is 0"),
        ({"seq_length": 0}, ConfigError, "seq_length is 0"),
        ({"order": "random"}, ConfigError, "order is 'random'"),
        ({"index_names": "x"}, ConfigError, "index_names is 'x'"),
        ({"splits_to_build": ["train", "test"]}, ConfigError, "names 2 splits"),
        ({"splits_to_build": "tets"}, ConfigError, "'tets' is not a split"),
        ({"num_train_samples": 0}, ConfigError, "0 samples are wanted"),
        ({"eod_mask_loss": True}, ConfigError, "which token ends a document"),
        ({"object_storage_config": {"bin_chunk": 1}}, ConfigError, "bin_chunk is not known"),
        ({"object_storage_config": {"bin_chunk_nbytes": 1}}, ConfigError, "bin_chunk_nbytes is 1"),
        ({"seq_length": 5000}, DataError, "the train split of a holds (no sample: )?3,.* tokens"),
        ({"paths": ["a", "nothing"]}, DataError, "cannot read nothing.bin"),
    ],
)
@pytest.mark.parametrize("order", ["megatron", "stateless"])
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str, order: str, files: Path) -> None:
    with pytest.raises(error, match=message):
        MegatronPretraining(**{"paths": "a", "seq_length": 16, "order": order, **arguments})


def test_a_part_of_a_blend_without_a_sample(tmp_path: Path) -> None:
    """megatron-core: a bare AssertionError, or no end."""
    large, tiny = small(tmp_path, [50] * 40), small(tmp_path, [5, 5], name="tiny")
    with pytest.raises(DataError, match=r"the train split of .*tiny holds no sample: 10 tokens"):
        MegatronPretraining([large, tiny], 16, split="1,0,0")
    with pytest.raises(DataError, match=r"the valid split of .*tiny holds no tokens"):
        MegatronPretraining(["1", large, "1", tiny], 16, split="9,1,0", splits_to_build="valid", num_val_samples=5)
    stateless = MegatronPretraining([large, tiny], 16, split="1,0,0", order="stateless")
    assert len(stateless) == (2000 - 1) // 16
    assert "1 prefix(es) hold fewer than 17 tokens" in stateless.notes[0]
    empty = tmp_path / "empty"
    write_megatron_file(empty, [], dtype="uint16")
    with pytest.raises(DataError, match="holds no sample"):
        MegatronPretraining(empty, 16)


def test_ids_beyond_the_model(files: Path) -> None:
    dataset = MegatronPretraining(["a", "b", "c"], 16, order="stateless")
    assert dataset.max_token_id() == 49
    dataset.check_vocab(50)
    with pytest.raises(DataError, match=r"holds token id 49, the model has 49 ids"):
        dataset.check_vocab(49)


def test_a_tokenizer_by_name(files: Path) -> None:
    dataset = MegatronPretraining("a", 16, "byte", reset_position_ids=True)
    assert isinstance(dataset.tokenizer, ByteTokenizer)
    assert dataset.labels.ids.eod == 256


def test_every_window_of_the_stateless_order_is_a_stretch_of_its_file(files: Path) -> None:
    dataset = MegatronPretraining(["a", "c"], 16, split="1,0,0", order="stateless")
    whole = [MegatronReader(name).tokens.read(0, MegatronReader(name).file.num_tokens) for name in "ac"]
    seen = set()
    for number, (part, start) in enumerate(dataset.sample_offsets(np.arange(len(dataset))).tolist()):
        assert start % 16 == 0
        seen.add((part, start))
        if number % 20 == 0:
            item = dataset[number]
            np.testing.assert_array_equal(item["tokens"].numpy(), whole[part][start : start + 16])
            np.testing.assert_array_equal(item["labels"].numpy(), whole[part][start + 1 : start + 17])
    assert len(seen) == len(dataset)
    second = dataset.sample_offsets(np.arange(len(dataset), 2 * len(dataset)))
    assert {tuple(place) for place in second.tolist()} == seen
    assert not np.array_equal(second, dataset.sample_offsets(np.arange(len(dataset))))


def test_an_index_damaged_under_a_cached_order_is_named(tmp_path: Path) -> None:
    prefix = small(tmp_path, [30] * 20)
    arguments = {"split": "1,0,0", "index_mapping_dir": tmp_path / "cache"}
    MegatronPretraining(str(prefix), 16, **arguments)
    index = Path(f"{prefix}.idx")
    before, content = index.stat(), bytearray(index.read_bytes())
    content[34 + 4 * 7] ^= 2  # the length of sequence 7
    index.write_bytes(content)
    os.utime(index, ns=(before.st_atime_ns, before.st_mtime_ns))
    dataset = MegatronPretraining(str(prefix), 16, **arguments)
    with pytest.raises(DataError, match=r"x\.idx: sequence 8 has length 30"):
        dataset[0]


@pytest.mark.parametrize("argument", [{"seed": -1}, {"seed": 2**32}, {"mid_level_dataset_surplus": float("nan")}])
def test_numbers_out_of_range_are_configuration_errors(tmp_path: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(argument))):
        MegatronPretraining(str(small(tmp_path, [30])), 16, **argument)


def test_an_index_larger_than_memory_is_refused_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this machine") as caught:
        MegatronPretraining(str(small(tmp_path, [30] * 20)), 16, split="1,0,0", num_train_samples=10**13)
    assert "order: stateless" in caught.value.hint
