"""Manifests beside Megatron files: whose tokens they are, whether they are still those files, who may train on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.token_files import write_megatron_file

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer, load_tokenizer
from automodel_cli.data.megatron import origin as megatron_origin
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import megatron as preprocess_megatron

EOD = 256
TEXTS = [f"text {number}: " + "some words " * (number % 9) for number in range(40)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of byte tokens with their manifest, and the words of a char vocabulary in another folder."""
    folder = tmp_path_factory.mktemp("made")
    for number, half in enumerate((TEXTS[:20], TEXTS[20:])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in half)
        (folder / f"part{number}.jsonl").write_text(rows)
    cfg = PreprocessMegatronConfig(
        input=[str(folder / "*.jsonl")],
        output_path=str(folder / "out"),
        tokenizer="byte",
        append_eod=True,
        workers=0,
    )
    preprocess_megatron.run(cfg, progress=lambda _: None, say=lambda _: None)
    return folder / "out"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def dataset(folder: Path, **arguments) -> MegatronPretraining:
    paths = f"{folder}/processed_data_*_text_document*"
    return MegatronPretraining(paths, 16, split="1,0,0", order="stateless", **arguments)


def test_the_tokenizer_comes_with_the_files(made):
    data = dataset(made)
    assert data.manifest is not None
    assert data.manifest.tokenizer["fingerprint"] == ByteTokenizer().fingerprint()
    assert data.tokenizer.encode("ab") == [97, 98]
    assert data.tokenizer.token_bytes().tolist() == [1] * 256 + [0]
    again = dataset(made, tokenizer="byte")
    assert again.plan_hash == data.plan_hash


def test_it_is_loaded_only_when_it_is_asked_for(made, monkeypatch):
    loaded = []
    monkeypatch.setattr(megatron_origin, "load_tokenizer", lambda folder: loaded.append(folder))
    data = dataset(made)
    data[0]
    data.check_vocab(257)
    assert not loaded
    assert data.tokenizer is None and loaded == [made / "processed_data.tokenizer"]


def test_its_end_of_document_serves_the_masks(made):
    data = dataset(made, eod_mask_loss=True)
    rows = torch.stack([data[number]["tokens"] for number in range(len(data))]).numpy()
    assert (rows == EOD).any()
    padded = torch.nn.functional.pad(torch.from_numpy(rows), (0, 1)).numpy()
    batch = data.make_batch(padded)
    assert ((batch.labels == IGNORE_INDEX).numpy() == (rows == EOD)).all()


def test_another_tokenizer_is_refused(made, tmp_path):
    CharTokenizer("abc").save(tmp_path / "chars")
    with pytest.raises(DataError, match=r"tokenized with byte \(257 ids, xxh3:\w+\), not with char"):
        dataset(made, tokenizer=str(tmp_path / "chars"))


def test_a_foreign_tokenizer_is_judged_by_its_number_of_ids(made):
    class Foreign:
        name_or_path = "theirs"

        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

    assert dataset(made, tokenizer=Foreign(257)).tokenizer.size == 257
    with pytest.raises(DataError, match="not with theirs"):
        dataset(made, tokenizer=Foreign(300))


def test_a_name_that_cannot_be_had_is_served_by_the_copy(made, monkeypatch):
    def nothing(name):
        raise DataError(f"{name} cannot be had", "no network")

    monkeypatch.setattr(megatron_origin, "open_tokenizer", nothing)
    data = dataset(made, tokenizer="somebody/byte")
    assert data.tokenizer.name == "byte"
    assert any("somebody/byte cannot be had; the copy in" in note for note in data.notes)
    with pytest.raises(DataError, match="other/thing cannot be had"):
        dataset(made, tokenizer="other/thing")


def test_a_model_with_fewer_ids_than_the_tokenizer(made):
    dataset(made).check_vocab(257)
    with pytest.raises(DataError, match=r"tokenized with byte \(257 ids\), the model has 256"):
        dataset(made).check_vocab(256)


def test_files_that_were_replaced_since(copied):
    write_megatron_file(copied / "processed_data_1_text_document", [[[1, 2, 3]]], dtype="uint16")
    with pytest.raises(DataError, match=r"processed_data_1\w+ is not what .*: uint16, 3 tokens, 1 sequences"):
        dataset(copied)
    (copied / "processed_data.manifest.json").unlink()
    assert dataset(copied).manifest is None


def test_files_of_two_tokenizers_do_not_mix(copied, tmp_path):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "x.jsonl").write_text(rows)
    CharTokenizer("".join(TEXTS)).save(tmp_path / "chars")
    cfg = PreprocessMegatronConfig(
        input=[str(tmp_path / "x.jsonl")],
        output_path=str(copied),
        output_prefix="other",
        tokenizer=str(tmp_path / "chars"),
        workers=0,
    )
    preprocess_megatron.run(cfg, progress=lambda _: None, say=lambda _: None)
    with pytest.raises(DataError, match=r"tokenized with byte .* not with char"):
        MegatronPretraining(str(copied), 16, split="1,0,0", order="stateless")


def test_files_of_others_beside_ours(copied):
    """Of a mixture nothing is claimed."""
    write_megatron_file(copied / "theirs_text_document", [[[1] * 50]], dtype="uint16")
    data = MegatronPretraining(str(copied), 16, split="1,0,0", order="stateless")
    assert len(data.parts) == 3
    assert data.manifest is None and data.tokenizer is None


def test_a_manifest_is_read_once_for_all_its_files(made, monkeypatch):
    read = []
    original = MegatronManifest.read
    monkeypatch.setattr(MegatronManifest, "read", lambda path: read.append(path) or original(path))
    dataset(made)
    assert read == [made / "processed_data.manifest.json"]


def test_a_damaged_manifest_is_an_error(copied):
    path = copied / "processed_data.manifest.json"
    path.write_text(path.read_text().replace('"tokens"', '"tokems"', 1))
    with pytest.raises(DataError, match="manifest"):
        dataset(copied)


def test_without_its_folder_there_is_no_tokenizer(copied):
    shutil.rmtree(copied / "processed_data.tokenizer")
    data = dataset(copied)
    assert data.tokenizer is None
    assert data.manifest.tokenizer["name"] == "byte"


def test_the_copy_is_the_tokenizer(made):
    assert load_tokenizer(made / "processed_data.tokenizer").fingerprint() == ByteTokenizer().fingerprint()


def test_in_the_order_of_the_files_every_token_is_a_label_once(made):
    data = MegatronPretraining({"validation": str(made)}, 16, splits_to_build="validation", order="file")
    ids = [torch.cat([data[n]["tokens"], data[n]["labels"][-1:]]) for n in range(len(data))]
    first = data.parts[0].tokens
    windows = (first - 1) // 16
    text = b"".join(t.encode() + b"\xff" for t in TEXTS[:20])  # the end of a document stands as one id
    joined = torch.cat([row[:-1] for row in ids[:windows]]).tolist()
    assert [255 if token == EOD else token for token in joined] == list(text[: windows * 16])
    assert len(data) == sum((part.tokens - 1) // 16 for part in data.parts)
    assert data.named_split is None and data.plan()["order"] == "file"
