"""Conversations as rows: labels, orders, lengths, identity, packs, and positions in them."""

import itertools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import write_tokens
from tests.recipes.preprocess.chat_files import smoltalk, task_mixture, write_jsonl

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.config.schema.chat import PreprocessChatConfig
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.conversation import parse_row
from automodel_cli.corpus.formats.conversation_files import ConversationFile, read_order
from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.data.chat_dataset import ChatDataset
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.data.packing import Packing
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.recipes.preprocess import chat

PACK = 256


def make(folder: Path, **options) -> Path:
    cfg = PreprocessChatConfig(**{"tokenizer": "byte", "num_workers": 0, "output_dir": str(folder), **options})
    chat.run(cfg, progress=lambda event: None, say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The mixture of ``chat_files``, with bytes as tokens."""
    folder = tmp_path_factory.mktemp("chat")
    return make(folder / "out", mixture=task_mixture(folder / "in"))


@pytest.fixture(scope="module")
def one_task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    return make(folder / "out", dataset=write_jsonl(folder / "chats.jsonl", smoltalk(12)), val_fraction=0.25)


def test_a_row_has_the_labels_of_the_mask(data) -> None:
    chat_format = chat_format_of(load_tokenizer(data))
    dataset = ChatDataset(data / "val_smoltalk.bin")
    expected = {tuple(one.ids): one.mask for one in map(chat_format.render, map(parse_row, smoltalk(9)))}
    assert len(dataset) == 6
    for row in dataset:
        ids, labels = row["input_ids"], row["labels"]
        whole = next(found for found in expected if found[:-1] == tuple(ids.tolist()))
        learned = np.where(expected[whole], whole, IGNORE_INDEX)[1:]
        assert labels.tolist() == learned.tolist() and ids.dtype == labels.dtype == torch.int64


def test_a_folder_is_its_mixture_and_a_file_its_rows(data) -> None:
    mixture = ChatDataset(data)
    order = read_order(data, 68)
    tasks = ("smoltalk", "mmlu_auxiliary", "gsm8k", "stars")
    files = [ConversationFile.open(data / f"train_{name}.bin") for name in tasks]
    rows = [file.read(number)[0].tolist() for file in files for number in range(len(file))]
    assert [row["input_ids"].tolist() for row in mixture] == [rows[number][:-1] for number in order]
    paths = [data / "train_gsm8k.bin", data / "train_stars.bin"]
    assert [row["input_ids"].tolist() for row in ChatDataset(paths)] == [row[:-1] for row in rows[50:]]
    assert len(ChatDataset(f"{data}/val_*.bin")) == len(ChatDataset(data, split="validation")) == 13
    told = mixture.describe()
    assert (told.sequences, told.files, told.split) == (78, 4, "train")
    assert told.tokens == sum(len(row["input_ids"]) for row in mixture)
    assert mixture.manifest.tokenizer_folder == data / "tokenizer"


def test_a_first_file_stands_for_itself(data) -> None:
    """Of other corpora the first shard stands for all."""
    assert len(ChatDataset(str(data / "train_smoltalk.bin"))) == 30
    assert len(ChatDataset(str(data / "val_smoltalk.bin"))) == 6


def test_only_files_with_a_mask_are_conversations(data, tmp_path) -> None:
    found = ChatDataset.open_named(str(data), 64, trained_as={})
    assert len(found) == 13 and found.max_tokens == 64
    assert len(ChatDataset.open_named(str(data / "val_stars.bin"), 64, trained_as={})) == 2
    write_tokens(tmp_path / "val.bin", tokens=100, seed=0)
    for name in (tmp_path, tmp_path / "val.bin", tmp_path / "*.bin"):
        assert ChatDataset.open_named(str(name), 64, trained_as={}) is None


def test_long_conversations_are_cut_or_left_out(data) -> None:
    whole = ChatDataset(data / "train_smoltalk.bin")
    lengths = [len(row["input_ids"]) for row in whole]
    limit = sorted(lengths)[20]
    cut = ChatDataset(data / "train_smoltalk.bin", max_tokens=limit)
    assert [len(row["input_ids"]) for row in cut] == [min(length, limit) for length in lengths]
    assert all(torch.equal(a["labels"], b["labels"][:limit]) for a, b in zip(cut, whole, strict=True))
    fewer = ChatDataset(data / "train_smoltalk.bin", max_tokens=limit, long_conversations="drop")
    kept = [length for length in lengths if length <= limit]
    assert [len(row["input_ids"]) for row in fewer] == kept
    count = len(lengths) - len(kept)
    assert cut.notes == [f"{count} of 30 conversations have more than {limit} tokens: cut there"]
    assert fewer.notes == [f"{count} of 30 conversations have more than {limit} tokens: left out"]
    assert cut.describe().tokens == sum(min(length, limit) for length in lengths)
    with pytest.raises(DataError, match="none of 30"):
        ChatDataset(data / "train_smoltalk.bin", max_tokens=3, long_conversations="drop")


def test_identity_is_of_content(data, one_task, tmp_path) -> None:
    moved = shutil.copytree(data, tmp_path / "moved")
    assert ChatDataset(moved).fingerprint == ChatDataset(data).fingerprint
    others = [
        ChatDataset(data),
        ChatDataset(data, max_tokens=64),
        ChatDataset(data, split="validation"),
        ChatDataset(sorted(data.glob("train_*.bin"))),  # the same tokens in another order
        ChatDataset(one_task),
    ]
    everything = make(tmp_path / "all", dataset=str(one_task.parent / "chats.jsonl"), val_fraction=0.25, train_on="all")
    others.append(ChatDataset(everything))  # the same tokens, other labels
    assert len({one.fingerprint for one in others}) == len(others)
    (moved / "manifest.json").unlink()
    assert len(ChatDataset(moved / "val_stars.bin")) == 2 and ChatDataset(moved / "val_stars.bin").manifest is None


def test_what_is_missing_is_named(data, tmp_path) -> None:
    moved = shutil.copytree(data, tmp_path / "moved")
    (moved / "train_gsm8k.mask").unlink()
    with pytest.raises(DataError, match=r"train_gsm8k\.bin has no mask"):
        ChatDataset(moved)
    only_train = make(tmp_path / "only_train", dataset=write_jsonl(tmp_path / "chats.jsonl", smoltalk(3)))
    with pytest.raises(DataError, match="no conversations for validation"):
        ChatDataset(only_train, split="validation")


def test_a_model_needs_a_row_for_every_id(data, tmp_path) -> None:
    ChatDataset(data).check_vocab(259)
    with pytest.raises(DataError, match="259 ids"):
        ChatDataset(data).check_vocab(257)
    alone = shutil.copytree(data, tmp_path / "alone")
    (alone / "manifest.json").unlink()  # nothing says how many ids there are
    dataset = ChatDataset(alone / "val_stars.bin")
    dataset.check_vocab(258)
    with pytest.raises(DataError, match="token id 258"):
        dataset[0]


def test_what_makes_no_data_set_is_refused(data) -> None:
    with pytest.raises(ConfigError, match="mixture of its own"):
        ChatDataset([data, data / "val_stars.bin"])
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        ChatDataset(data, max_tokens=0)
    assert len(ChatDataset([data])) == 78


def packed(data, **options):
    sizes = {"global_batch_size": 2, "local_batch_size": 1, "num_epochs": 1}
    return PackedLoader(ChatDataset(data), packing=Packing(PACK), **{**sizes, **options})


def test_packs_hold_every_conversation_whole_and_apart(data) -> None:
    dataset = ChatDataset(data)
    expected = sorted(tuple(row["labels"][row["labels"] != IGNORE_INDEX].tolist()) for row in dataset)
    found = []
    for batch in itertools.chain.from_iterable(packed(data, global_batch_size=1)):
        for number in batch.segment_ids.unique():
            one = batch.segment_ids == number
            labels = batch.labels[one]
            if bool((labels != IGNORE_INDEX).any()):
                found.append(tuple(labels[labels != IGNORE_INDEX].tolist()))
                assert batch.position_ids[one].tolist() == list(range(int(one.sum())))
    assert sorted(found) == expected


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "num_epochs": 3}])
def test_a_position_is_exact(data, options) -> None:
    whole = [[batch.input_ids for batch in update] for update in packed(data, **options)]
    for stop in (1, len(whole) // 2, len(whole) - 1):
        first = packed(data, **options)
        for _ in itertools.islice(first, stop):
            pass
        second = packed(data, **options)
        second.load_state_dict(first.state_dict())
        rest = [[batch.input_ids for batch in update] for update in second]
        assert len(rest) == len(whole) - stop
        assert all(map(torch.equal, itertools.chain(*rest), itertools.chain(*whole[stop:])))
    other = PackedLoader(
        ChatDataset(data, max_tokens=99), packing=Packing(PACK), global_batch_size=2, local_batch_size=1
    )
    with pytest.raises(DataError, match="other data"):
        other.load_state_dict(first.state_dict())


def test_worker_processes_get_a_copy(data) -> None:
    dataset = ChatDataset(data)
    _ = dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(again, dataset, strict=True))


def test_validation_reads_every_learned_token_once(data) -> None:
    dataset = ChatDataset(data, split="validation")
    wanted = sum(int((row["labels"] != IGNORE_INDEX).sum()) for row in dataset)
    for packing in (None, Packing(PACK)):
        batches = list(EvalLoader(dataset, local_batch_size=4, packing=packing))
        assert sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches) == wanted
