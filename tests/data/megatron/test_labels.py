"""Labels, masks, positions and attention of Megatron samples, on rows one can read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.data.megatron.labels import LabelRules, SpecialIds, special_ids
from automodel_cli.errors import ConfigError

EOD, PAD = 9, 7
ROW = np.array([1, 9, 2, 3, 9, 9, 4, 5])


def rules(pad: int = -1, **flags: bool) -> LabelRules:
    return LabelRules(SpecialIds(EOD, pad), **flags)


def test_plain_rows_are_inputs_and_the_tokens_after_them() -> None:
    assert rules().plain
    item = rules().item(ROW, attention_mask=False)
    assert item["tokens"].tolist() == ROW[:-1].tolist()
    assert item["labels"].tolist() == ROW[1:].tolist()
    assert item["loss_mask"].tolist() == [1.0] * 7
    assert item["loss_mask"].dtype == torch.float32
    assert item["position_ids"].tolist() == list(range(7))
    assert "attention_mask" not in item


def test_positions_and_segments_end_with_a_document() -> None:
    both = rules(reset_position_ids=True, reset_attention_mask=True)
    assert not both.plain
    batch = both.batch(ROW[None])
    assert batch.position_ids is not None and batch.segment_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    assert batch.segment_ids.tolist() == [[0, 0, 1, 1, 1, 2, 3]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [ROW[1:].tolist()]
    forbidden = both.item(ROW, attention_mask=True)["attention_mask"]
    assert forbidden.dtype == torch.bool
    assert forbidden.shape == (1, 7, 7)
    assert forbidden[0, 4].tolist() == [True, True, False, False, False, True, True]


def test_each_flag_by_itself() -> None:
    only_positions = rules(reset_position_ids=True).batch(ROW[None])
    assert only_positions.segment_ids is None and only_positions.position_ids is not None
    only_segments = rules(reset_attention_mask=True).batch(ROW[None])
    assert only_segments.position_ids is None and only_segments.segment_ids is not None
    causal = rules(reset_position_ids=True).item(ROW, attention_mask=True)["attention_mask"][0]
    assert torch.equal(causal, ~torch.ones(7, 7).tril().bool())


def test_no_loss_after_a_document_ends_and_on_padding() -> None:
    masked = rules(eod_mask_loss=True).batch(ROW[None])
    assert masked.labels is not None
    assert masked.labels.tolist() == [[9, -100, 3, 9, -100, -100, 5]]
    padded = np.array([1, 2, PAD, 3, PAD, PAD])
    batch = rules(PAD).batch(padded[None])
    assert batch.labels is not None
    assert batch.input_ids.tolist() == [[1, 2, 0, 3, 0]]
    assert batch.labels.tolist() == [[2, -100, 3, -100, -100]]
    item = rules(PAD).item(padded, attention_mask=False)
    assert item["labels"].tolist() == [2, 0, 3, 0, 0]
    assert item["loss_mask"].tolist() == [1, 0, 1, 0, 0]


def test_a_mask_does_not_depend_on_what_was_read_before() -> None:
    """megatron-core zeroes one mask for all samples."""
    labels = rules(PAD)
    row = np.array([1, 2, 3, 4])
    before = labels.item(row, attention_mask=False)["loss_mask"]
    labels.item(np.array([1, PAD, PAD, 2]), attention_mask=False)
    assert torch.equal(labels.item(row, attention_mask=False)["loss_mask"], before)


def test_rows_are_not_touched() -> None:
    row = np.array([[1, PAD, 3, PAD]])
    rules(PAD, eod_mask_loss=True).batch(row)
    assert row.tolist() == [[1, PAD, 3, PAD]]


class Raises:
    """A tokenizer that has no padding token and says so loudly."""

    eod = 5

    @property
    def pad(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (None, SpecialIds(None, -1)),
        (ByteTokenizer(), SpecialIds(256, -1)),
        (SimpleNamespace(eos_token_id=50256, pad_token_id=None), SpecialIds(50256, -1)),
        (SimpleNamespace(eos_token_id=2, pad_token_id=0), SpecialIds(2, 0)),
        (SimpleNamespace(eos_token_id=2, pad_token_id=2), SpecialIds(2, -1)),
        (SimpleNamespace(eos_token_id=2, unk_token_id=0, pad_token_id=0), SpecialIds(2, -1)),
        (SimpleNamespace(eod=50, pad=3), SpecialIds(50, 3)),
        (Raises(), SpecialIds(5, -1)),
    ],
)
def test_special_ids_of_tokenizers(tokenizer: Any, expected: SpecialIds) -> None:
    assert special_ids(tokenizer) == expected


@pytest.mark.parametrize("flag", ["reset_position_ids", "reset_attention_mask", "eod_mask_loss"])
def test_a_rule_without_the_id_it_needs(flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        LabelRules(SpecialIds(), **{flag: True})
