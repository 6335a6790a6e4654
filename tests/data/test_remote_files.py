"""Token files in object storage: the same tokens as on a disk, whatever the store does, and few requests."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import EOT, make_corpus
from tests.object_server import Faults, ObjectServer
from tests.token_files import write_megatron_file, write_token_file

from automodel_cli.assembly.scoring.data import open_named, validation_data
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.rows import places_of
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.storage.cache.settings import CacheSettings, use_cache


@pytest.fixture
def bucket(object_server: ObjectServer, tmp_path: Path) -> str:
    use_cache(CacheSettings(tmp_path / "cache", chunk_bytes=64 << 10))
    return object_server.bucket("tokens")


def _upload(server: ObjectServer, folder: Path, below: str = "") -> None:
    client = server.client()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "tokens", f"{below}{path.relative_to(folder).as_posix()}")
    server.requests.clear()


def _tokens(count: int, seed: int) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, 50257, count)
    tokens[::97] = EOT
    return tokens


def _batches(dataset, updates: int) -> np.ndarray:
    loader = TokenLoader(dataset, global_batch_size=8, local_batch_size=4, num_epochs=None)
    read = itertools.islice(loader, updates)
    return np.stack([[batch.input_ids.numpy().copy() for batch in update] for update in read])


@pytest.mark.parametrize("options", [{}, {"shuffle_files": True}, {"align_to_bos": True}, {"intra_document": True}])
def test_a_corpus_gives_the_same_batches_and_is_the_same_data(
    options: dict, bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    shards = {f"dataset_{n:05d}.bin": _tokens(60_000 + n, n) for n in range(3)} | {"val.bin": _tokens(5_000, 9)}
    make_corpus(tmp_path / "corpus", shards)
    _upload(object_server, tmp_path / "corpus", "a/corpus/")
    local = NanogptDataset(tmp_path / "corpus", 64, **options)
    remote = NanogptDataset(f"{bucket}/a/corpus", 64, **options)
    assert remote.plan() == local.plan() and remote.fingerprint == local.fingerprint
    remote.check_vocab(50257)
    np.testing.assert_array_equal(_batches(remote, 300), _batches(local, 300))
    held_out = NanogptDataset.open_named(f"{bucket}/a/corpus", 64, trained_as={})
    assert held_out.named_split == "val" and held_out.num_tokens == 5_000


def test_files_without_a_manifest(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    """Headers and samples are read by range; a pattern and a list name what they name on a disk."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for number in range(4):
        write_token_file(folder / f"train_{number}.bin", _tokens(40_000, number))
    write_token_file(folder / "raw.u16", _tokens(9_000, 7), layout="raw")
    _upload(object_server, folder)
    for pattern in ("train_*.bin", "train_[12].bin", "raw.u16"):
        local, remote = NanogptDataset(f"{folder}/{pattern}", 64), NanogptDataset(f"{bucket}/{pattern}", 64)
        assert remote.plan() == local.plan(), pattern
        np.testing.assert_array_equal(_batches(remote, 20), _batches(local, 20))
    named = [f"{bucket}/train_{number}.bin" for number in (2, 0)]
    assert [file.name for file in NanogptDataset(named, 64).files] == named
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.stat().st_size > (64 << 10) + 8]


@pytest.mark.parametrize("order", ["megatron", "stateless"])
def test_megatron_files(order: str, bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name in ("a_text_document", "b_text_document"):
        documents = [[draw.integers(0, 50_000, draw.integers(1, 300)).tolist()] for _ in range(400)]
        write_megatron_file(folder / name, documents, dtype="uint16")
    _upload(object_server, folder, "pairs/")
    same = {
        "num_train_samples": 500,
        "object_storage_config": {"path_to_idx_cache": str(tmp_path / "idx"), "bin_chunk_nbytes": 1 << 28},
    }
    cases = (["30", "{}/a_text_document", "70", "{}/b_text_document.bin"], "{}", "{}/*_text_document*")
    for paths in cases:
        local, remote = (
            MegatronPretraining(
                [one.format(at) for one in paths] if isinstance(paths, list) else paths.format(at),
                64,
                order=order,
                **same,
            )
            for at in (folder, f"{bucket}/pairs")
        )
        assert remote.plan() == local.plan()
        remote.check_vocab(50257)
        np.testing.assert_array_equal(_batches(remote, 60), _batches(local, 60))
    assert list((tmp_path / "idx").rglob("a_text_document.idx"))
    if order == "megatron":  # its indices lie beside what is shown, and stay
        before = {path: path.stat().st_ino for path in (tmp_path / "idx").rglob("*.npy")}
        again = MegatronPretraining(f"{bucket}/pairs/*_text_document*", 64, **same)
        assert again.index_report().built == 0
        assert before and {path: path.stat().st_ino for path in (tmp_path / "idx").rglob("*.npy")} == before


def test_a_mixture_of_remote_and_local_sources(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    for name in ("web", "code"):
        make_corpus(tmp_path / name, {"dataset.bin": _tokens(50_000, len(name))})
    _upload(object_server, tmp_path / "web", "web/")
    local, remote = (
        Mixture(
            {
                "web": {"file_pattern": web, "weight": 0.7},
                "code": {"file_pattern": str(tmp_path / "code"), "weight": 0.3},
            },
            64,
        )
        for web in (str(tmp_path / "web"), f"{bucket}/web")
    )
    assert remote.plan() == local.plan()
    np.testing.assert_array_equal(_batches(remote, 60), _batches(local, 60))


def test_faults_change_nothing(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", {"dataset.bin": _tokens(400_000, 1)})
    _upload(object_server, tmp_path / "corpus", "corpus/")
    object_server.faults = Faults(errors=0.3, cuts=0.3, most=12)
    local, remote = NanogptDataset(tmp_path / "corpus", 64), NanogptDataset(f"{bucket}/corpus", 64)
    np.testing.assert_array_equal(_batches(remote, 600), _batches(local, 600))
    assert object_server.faults.count > 3


def test_hundreds_of_shards_open_with_a_handful_of_requests(
    bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "corpus", {f"dataset_{n:05d}.bin": _tokens(600, n) for n in range(60)})
    _upload(object_server, tmp_path / "corpus", "corpus/")
    remote = NanogptDataset(f"{bucket}/corpus", 64)
    assert len(remote.files) == 60
    assert len(object_server.requests) <= 4, object_server.requests


def test_what_is_wrong_is_said_with_the_url(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", {"dataset.bin": _tokens(5_000, 1), "dataset_00001.bin": _tokens(5_000, 2)})
    _upload(object_server, tmp_path / "corpus", "corpus/")
    with pytest.raises(DataError, match="there is nothing at s3://tokens/absent"):
        NanogptDataset(f"{bucket}/absent", 64)
    with pytest.raises(AutomodelError, match="no bucket s3://elsewhere"):
        NanogptDataset("s3://elsewhere/corpus", 64)
    client = object_server.client()
    client.put_object(Bucket="tokens", Key="text.bin", Body=b"This is a plain text, and a long one. " * 50)
    with pytest.raises(DataError, match=r"s3://tokens/text\.bin looks like text"):
        NanogptDataset(f"{bucket}/text.bin", 64)
    client.put_object(Bucket="tokens", Key="corpus/dataset.bin", Body=b"\0" * 2000)
    with pytest.raises(DataError, match=r"s3://tokens/corpus/dataset\.bin has 2,000 bytes, its manifest\.json says"):
        NanogptDataset(f"{bucket}/corpus", 64)
    client.delete_object(Bucket="tokens", Key="corpus/dataset_00001.bin")
    with pytest.raises(DataError, match=r"there is nothing at s3://tokens/corpus/dataset_00001\.bin"):
        NanogptDataset([f"{bucket}/corpus/dataset_00001.bin", f"{bucket}/corpus"], 64)


def test_a_listing_that_lags_hides_nothing_that_the_manifest_names(
    bucket: str, object_server: ObjectServer, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "corpus", {f"dataset_{n:05d}.bin": _tokens(5_000, n) for n in range(3)})
    _upload(object_server, tmp_path / "corpus", "corpus/")
    object_server.faults = Faults(hidden=frozenset({"corpus/dataset_00001.bin"}))
    assert len(NanogptDataset(f"{bucket}/corpus", 64).files) == 3


def test_an_object_that_changes_while_it_is_read(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", {"dataset.bin": _tokens(200_000, 1)})
    _upload(object_server, tmp_path / "corpus", "corpus/")
    remote = NanogptDataset(f"{bucket}/corpus", 64)
    object_server.client().put_object(Bucket="tokens", Key="corpus/dataset.bin", Body=b"\0" * 401_024)
    with pytest.raises(DataError, match=r"s3://tokens/corpus/dataset\.bin"):
        _batches(remote, 5)


def test_a_row_is_told_by_the_url_of_its_file(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", {"dataset.bin": _tokens(5_000, 1)})
    _upload(object_server, tmp_path / "corpus", "corpus/")
    (pieces,) = places_of(NanogptDataset(f"{bucket}/corpus", 64), np.array([3]))
    assert [piece.to_json()["file"] for piece in pieces] == ["s3://tokens/corpus/dataset.bin"]
    assert pieces[0].documents[0].number is not None  # from the .bos.idx, which came along


def test_files_are_scored_by_url(bucket: str, object_server: ObjectServer, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", {"dataset.bin": _tokens(5_000, 1), "val.bin": _tokens(3_000, 2)})
    write_megatron_file(tmp_path / "a_text_document", [[list(range(50))]] * 40, dtype="uint16")
    _upload(object_server, tmp_path)
    assert open_named(f"{bucket}/corpus", 64).describe().tokens == 3_000
    assert open_named(f"{bucket}/corpus/dataset.bin", 64).describe().tokens == 5_000
    assert open_named(f"{bucket}/a_text_document", 16).describe().tokens == 2_000
    trained_as = {"dataset": {"file_pattern": f"{bucket}/corpus/dataset.bin"}}
    assert validation_data(trained_as) == (f"{bucket}/corpus/val.bin",)
