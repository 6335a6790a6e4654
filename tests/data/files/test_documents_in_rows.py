"""Documents that share a row compute what they compute alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.token_files import write_token_file

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.files.documents import positions, segments
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import MaskedCrossEntropy

EOT = 63
DOCUMENTS = [[EOT, 5, 9, 2], [EOT, 7], [EOT, 1, 1, 30, 8, 4, 40], [EOT, 3, 3], [EOT, 11, 12]]


def test_positions_and_segments():
    begins = np.array([[0, 0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1, 0]], dtype=bool)
    assert positions(begins).tolist() == [[0, 1, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 0, 1]]
    assert segments(begins).tolist() == [[0, 0, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 2, 2]]


@pytest.mark.parametrize("eot", ["prepend", "append"])
def test_a_row_is_its_documents(tmp_path, eot):
    """Loss and gradients of one packed row equal the sums over its documents on their own."""
    if eot == "prepend":
        documents, path = DOCUMENTS, tmp_path / "d.bin"
        write_token_file(path, np.concatenate(documents), dtype="uint16")
    else:  # headerless: each document ends with the separator
        documents, path = [[*one[1:], EOT] for one in DOCUMENTS], tmp_path / "train.bin"
        np.concatenate(documents).astype("<u2").tofile(path)
    tokens = np.concatenate(documents)
    dataset = NanogptDataset(
        path, len(tokens) - 1, intra_document=True, bos_token=EOT,
        raw_dtype="uint16" if eot == "append" else None,
    )  # fmt: skip
    row = np.empty((1, len(tokens)), dtype=np.int64)
    dataset.read_samples(np.array([0]), row)
    packed = dataset.make_batch(row)

    model = build_gpt2_model(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model.materialize("cpu", seed=1)
    loss = MaskedCrossEntropy()

    def nll_and_gradients(batches):
        model.zero_grad()
        total = sum(model(batch, head_loss=loss) for batch in batches)
        total.backward()
        return total.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    # The last token of a document has the first of the next one as its label, alone as in the row.
    alone = []
    begin = 0
    for one in documents:
        labels = tokens[begin + 1 : begin + len(one) + 1].tolist()
        labels += [IGNORE_INDEX] * (len(one) - len(labels))
        alone.append(Batch(torch.tensor([one]), torch.tensor([labels])))
        begin += len(one)
    expected, gradients = nll_and_gradients(alone)
    found, packed_gradients = nll_and_gradients([packed])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    plain = Batch(packed.input_ids, packed.labels)
    with torch.no_grad():
        assert abs(float(model(plain, head_loss=loss) - expected)) > 1e-3  # it does make a difference


@pytest.mark.parametrize("eot", ["prepend", "append"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_windows_that_begin_in_the_middle_of_documents(tmp_path, eot, shuffled):
    """Positions and segments of every batch, against a walk over the tokens of its rows one by one."""
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random(500) < 0.15, EOT, rng.integers(0, EOT, 500)).astype("<u2")
    tokens[:3] = EOT, EOT, 5  # an empty document
    path = tmp_path / "train.bin"
    if eot == "prepend":
        write_token_file(path, tokens, dtype="uint16")
    else:
        tokens.tofile(path)
    dataset = NanogptDataset(
        path, 17, intra_document=True, bos_token=EOT, shuffle_files=shuffled,
        raw_dtype="uint16" if eot == "append" else None,
    )  # fmt: skip
    seen = 0
    for (batch,) in TokenLoader(dataset, global_batch_size=4, local_batch_size=4):
        for ids, places, documents in zip(
            batch.input_ids.tolist(), batch.position_ids.tolist(), batch.segment_ids.tolist(), strict=True
        ):
            place = document = 0
            for number, token in enumerate(ids):
                before = ids[number - 1] if number else None
                if (token if eot == "prepend" else before) == EOT:
                    document, place = document + 1, 0
                assert (places[number], documents[number]) == (place, document)
                place += 1
            seen += 1
    assert seen == len(dataset) // 4 * 4
    item, row = dataset[3], np.empty((1, 18), dtype=np.int64)
    dataset.read_samples(np.array([3]), row)
    fields = {name: rows for name, rows in vars(dataset.make_batch(row)).items() if rows is not None}
    assert item.keys() == fields.keys() == {"input_ids", "labels", "position_ids", "segment_ids"}
    for name, rows in fields.items():
        assert torch.equal(item[name], rows[0]), name


def test_the_plan_says_so_and_a_corpus_without_separator_is_refused(tmp_path):
    path = tmp_path / "d.bin"
    write_token_file(path, np.concatenate(DOCUMENTS), dtype="uint16")
    plain, apart = (NanogptDataset(path, 8, intra_document=on, bos_token=EOT) for on in (False, True))
    assert plain.plan_hash != apart.plan_hash and "intra_document" not in plain.plan()
    with pytest.raises(ConfigError, match=r"intra_document needs dataset\.bos_token"):
        NanogptDataset(path, 8, intra_document=True)
