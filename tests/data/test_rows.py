"""Where samples of token files lie and which documents they are of, against the files read by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.token_files import write_megatron_file, write_token_file

from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.data.files.documents import Document
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.rows import places_of, read_rows
from automodel_cli.errors import DataError

SAMPLES = np.arange(40)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, np.ndarray]:
    """Two pairs of files by prefix, and the document of each of their tokens; some documents are empty."""
    folder, rng, found = tmp_path_factory.mktemp("megatron"), np.random.default_rng(0), {}
    for name in ("a", "b"):
        documents = [
            [rng.integers(0, 90, rng.integers(0, 12)).tolist() for _ in range(number % 4)] for number in range(60)
        ]
        write_megatron_file(folder / name, documents, dtype="uint16")
        lengths = [sum(map(len, document)) for document in documents]
        found[str(folder / name)] = np.repeat(np.arange(60), lengths)
    return found


@pytest.mark.parametrize("order", ["megatron", "stateless"])
def test_megatron_samples(order, pairs, tmp_path):
    a, b = pairs
    options = {"split": "90,5,5", "order": order, "num_train_samples": 40, "index_mapping_dir": str(tmp_path)}
    dataset = MegatronPretraining(["0.7", a, "0.3", b], 16, **options)
    several = 0
    for row in read_rows(dataset, SAMPLES):
        found = []
        for piece in row.pieces:
            stretch, prefix = piece.stretch, str(piece.stretch.file).removesuffix(".bin")
            of_token = pairs[prefix]
            found += np.fromfile(stretch.file, "<u2")[stretch.first : stretch.end].tolist()
            numbers = np.unique(of_token[stretch.first : stretch.end]).tolist()
            assert list(piece.documents) == [Document(n, int(np.argmax(of_token == n))) for n in numbers]
            assert stretch.source == prefix.rpartition("/")[2]
            several += len(numbers) > 1
        assert found == row.tokens.tolist()
    assert several > 5 or order == "megatron"


@pytest.mark.parametrize("eot", ["prepend", "append"])
def test_documents_without_an_index_begin_at_the_separator(eot, tmp_path):
    starts = [0, 7, 9, 30, 61]
    tokens = np.ones(80, dtype=np.int64)
    tokens[starts if eot == "prepend" else [start - 1 for start in starts[1:]]] = 5
    layout = "nemo" if eot == "prepend" else "raw"  # whose files have it before and after each document
    write_token_file(tmp_path / "a.bin", tokens, layout=layout)
    known, unknown = (NanogptDataset(str(tmp_path / "a.bin"), seq_len=8, bos_token=one) for one in (5, None))
    for sample, ((piece,), (other,)) in enumerate(
        zip(places_of(known, SAMPLES[:9]), places_of(unknown, SAMPLES[:9]), strict=True)
    ):
        first, end = 8 * sample, 8 * sample + 9
        begun = [start for start in starts if start <= first][-1:]
        assert [one.start for one in piece.documents] == begun + [start for start in starts if first < start < end]
        assert {one.number for one in piece.documents} == {None} and other.documents == []
    write_token_file(tmp_path / "b.bin", tokens, starts=np.array(starts), layout=layout)
    indexed = NanogptDataset(str(tmp_path / "b.bin"), seq_len=8, bos_token=5)
    assert list(places_of(indexed, np.array([3]))[0][0].documents) == [Document(2, 9), Document(3, 30)]
    np.array([0, 8, 9], dtype="<i4").tofile(bos_index_path(tmp_path / "b.bin"))  # not where documents begin
    spoiled = NanogptDataset(str(tmp_path / "b.bin"), seq_len=8, bos_token=5)
    assert list(places_of(spoiled, np.array([3]))[0][0].documents) == [Document(None, 9), Document(None, 30)]


def test_rows_of_other_data_sets_are_not_located():
    assert places_of([1, 2], SAMPLES[:2]) == [[], []]
    with pytest.raises(DataError, match="list does not say where its rows lie"):
        read_rows([1, 2], SAMPLES[:2])
