"""Schedules of batch sizes and row lengths: ends as shares, steps and tokens."""

from __future__ import annotations

import pytest

from automodel_cli.config.horizon import batches_of, horizon_of, row_lengths_of
from automodel_cli.errors import ConfigError

GPT = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, vocab_size: 64, n_embd: 32, n_layer: 1, n_head: 2}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: data.bin, seq_len: 32}
"""
SCHEDULE = "step_scheduler.batch_size_schedule="
ROWS = "step_scheduler.seq_len_schedule="


def stages(load_text, *overrides):
    return batches_of(load_text(GPT, *overrides)).stages


def test_one_size_needs_no_schedule(load_text):
    assert stages(load_text, "step_scheduler.global_batch_size=6") == ((0, 6),)
    assert row_lengths_of(load_text(GPT), 32) is None


def test_ends_in_steps_and_tokens(load_text):
    found = stages(load_text, f"{SCHEDULE}[{{until_step: 3, size: 2}}, {{until_tokens: 500, size: 4}}]")
    assert found == ((0, 2), (6, 4), (18, 32))  # 500 tokens are 16 rows of 32: the third update of 4 reaches them


def test_a_list_in_place_of_the_size_is_the_same(load_text):
    short = load_text(GPT, "step_scheduler.global_batch_size=[{until_step: 3, size: 2}, {size: 8}]")
    assert short == load_text(GPT, f"{SCHEDULE}[{{until_step: 3, size: 2}}]", "step_scheduler.global_batch_size=8")


@pytest.mark.parametrize("length", ["max_steps=90", "max_tokens=20480"])
def test_shares_are_of_the_tokens_of_the_run(load_text, length):
    cfg = load_text(
        GPT, f"step_scheduler.{length}", f"{SCHEDULE}[{{until: 0.5, size: 4}}]", "step_scheduler.global_batch_size=8"
    )
    sizes, steps = batches_of(cfg), horizon_of(cfg).steps
    total = sizes.samples(steps)
    assert abs(sizes.stages[1][0] - total / 2) <= 4
    assert length != "max_tokens=20480" or (total, steps) == (640, 120)


def test_rows_are_cut_by_stages_of_samples(load_text):
    cfg = load_text(
        GPT,
        "step_scheduler.max_steps=10",
        "step_scheduler.global_batch_size=4",
        f"{ROWS}[{{until: 0.25, seq_len: 8}}, {{until_step: 5, seq_len: 16}}]",
    )
    assert row_lengths_of(cfg, 32).stages == ((0, 8), (12, 16), (20, 32))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([f"{SCHEDULE}[{{size: 2}}]"], r"batch_size_schedule\[0\]: found no end"),
        ([f"{SCHEDULE}[{{until: 1.5, size: 2}}]"], "until is 1.5, expected a share"),
        ([f"{SCHEDULE}[{{until: 0.5, until_step: 3, size: 2}}]"], "found until and until_step"),
        ([f"{SCHEDULE}[{{until_step: 3, size: 2}}, {{until_step: 3, size: 4}}]"], "let the ends of stages ascend"),
        ([f"{SCHEDULE}[{{until: 0.5, size: 2}}]"], "share of the run, whose length is not known"),
        (
            [f"{SCHEDULE}[{{until: 0.9, size: 400}}, {{until: 0.1, size: 1}}]", "step_scheduler.max_steps=9"],
            "until goes 0.9, 0.1",
        ),
        (
            [f"{SCHEDULE}[{{until_step: 2, size: 2}}, {{until: 0.5, size: 4}}]", "step_scheduler.max_steps=9"],
            "do not go with other ends",
        ),
        (["step_scheduler.global_batch_size=[{until_step: 2, size: 2}]"], "the last entry of a list"),
        (["step_scheduler.global_batch_size=[{size: 2}]", f"{SCHEDULE}[{{until_step: 2, size: 2}}]"], "keep one"),
        ([f"{ROWS}[{{until_step: 3, seq_len: 12}}]"], "seq_len is 12, the data set's 32"),
        ([f"{ROWS}[{{until_step: 3, seq_len: 32}}]"], "give a smaller divisor of 32, such as 16, 8, 4"),
        ([f"{ROWS}[{{until_step: 3, seq_len: 8}}, {{until_step: 2, seq_len: 16}}]"], "let the ends of stages ascend"),
        ([f"{ROWS}[{{until: 0.1, seq_len: 8}}]"], "share of the run"),
    ],
)
def test_what_is_refused(load_text, overrides, says):
    with pytest.raises(ConfigError, match=says):
        cfg = load_text(GPT, *overrides)
        batches_of(cfg)
        row_lengths_of(cfg, 32)
