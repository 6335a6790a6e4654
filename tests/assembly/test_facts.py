"""Facts of a manifest: the same names on the disk, and those of earlier versions are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_cli.assembly.facts import Facts, changed_settings, refuse_other_run
from automodel_cli.errors import CheckpointError

OLD = {"model": {"family": "gpt2", "n_layer": 2}, "optimizer": {"class": "AdamW"}, "of_another_version": 1}


def test_what_an_earlier_version_did_not_know_is_none():
    facts = Facts.from_json(OLD)
    assert (facts.model, facts.fast_path, facts.batch) == (OLD["model"], None, None)
    assert set(facts.to_json()) == {
        "stage", "model", "code", "param_counts", "param_roles", "data", "tokenizer", "optimizer", "schedule",
        "fast_path", "precision", "batch", "versions",
    }  # fmt: skip


def test_another_model_is_refused_and_what_is_not_known_is_not():
    now = Facts(model={"family": "gpt2", "n_layer": 3}, tokenizer={"fingerprint": "b"})
    with pytest.raises(CheckpointError, match="the model section: n_layer: 2 -> 3"):
        refuse_other_run(Facts.from_json(OLD), now, Path("step_00000001"))
    refuse_other_run(Facts.from_json(OLD), Facts(model=OLD["model"], tokenizer={"fingerprint": "b"}), Path("a"))


def test_changed_settings_are_told():
    stored, now = Facts(batch={"global": 8, "local": 2}), Facts(batch={"global": 8, "local": 4})
    assert changed_settings(stored, now) == [
        "changed since the checkpoint: batch.local: 2 -> 4 (the configuration wins)"
    ]
