"""Indices ahead of the job: what was built is what the run looks for, and nothing else is done."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.data.megatron import index_cache
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import index

TARGET = "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining"


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """Three shards for training and validation, and a second validation set that needs no index."""
    data = tmp_path / "files"
    data.mkdir()
    for shard in range(3):
        random = np.random.default_rng(shard)
        writer = MegatronWriter(data / f"part_{shard}", dtype=np.dtype("<u2"))
        for length in random.integers(20, 90, 60):
            writer.write(random.integers(0, 64, length).astype("<u2"), np.array([length]))
        writer.close()
    common = {
        "_target_": TARGET,
        "paths": str(data),
        "index_mapping_dir": str(tmp_path / "index"),
        "seq_length": 32,
        "split": "0.8, 0.2, 0.0",
    }
    return {
        "dataset": common,
        "validation_dataset": {**common, "num_val_samples": 20},
        "validation_dataset_quick": {**common, "order": "stateless"},
    }


def build(tiny_training, *overrides: str, **sections) -> tuple[list[index.Indexed], list[str], list]:
    cfg = load_config(PretrainConfig, tiny_training.config(**sections), list(overrides))
    said: list[str] = []
    tables: list = []
    reporter = Reporter(say=said.append, columns=lambda *table: tables.append(table))
    return index.run(cfg, reporter=reporter), said, tables


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


def test_a_run_afterwards_builds_nothing(tiny_training, sections, tmp_path, monkeypatch):
    results, _, tables = build(tiny_training, **sections)
    assert [(r.section, r.built, r.found) for r in results] == [
        ("training", 4, 0),  # three files and their blend
        ("validation: default", 4, 0),
        ("validation: quick", 0, 0),
    ]
    assert results[2].folder is None
    assert {row[0] for row in tables[0][2]} == {r.section for r in results}
    before = modified(tmp_path / "index")
    assert len(before) == 2 * (3 * 3 + 2)

    def never(*_):
        raise AssertionError("an index was built")

    monkeypatch.setattr(index_cache.IndexCache, "_make", never)
    recipe = tiny_training.recipe(**sections)
    assert recipe.dataset.index_cache.built == []
    assert modified(tmp_path / "index") == before
    assert not any("built again" in line for line in recipe.said)


def test_again_and_after_a_change(tiny_training, sections):
    build(tiny_training, **sections)
    again, _, _ = build(tiny_training, **sections)
    assert [(r.built, r.found) for r in again] == [(0, 4), (0, 4), (0, 0)]
    longer, said, _ = build(tiny_training, "--step_scheduler.max_steps", "100", **sections)
    assert longer[0].built > 0 and longer[1].built == 0
    assert not any("built again" in line for line in said)


def test_a_damaged_index_is_made_again_and_said(tiny_training, sections, tmp_path):
    build(tiny_training, **sections)
    victim = next((tmp_path / "index").glob("part_1-train-*-sample_index.npy"))
    os.truncate(victim, 40)
    results, said, _ = build(tiny_training, **sections)
    assert results[0].built == 1
    assert any("built again" in line and "cut off" in line for line in said)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error_here(tiny_training, sections, tmp_path):
    (tmp_path / "index").mkdir(mode=0o500)
    with pytest.raises(DataError, match="could not be kept"):
        build(tiny_training, **sections)


def test_a_folder_that_is_a_file_is_an_error_here(tiny_training, sections, tmp_path):
    (tmp_path / "index").write_text("in the way")
    with pytest.raises(DataError, match=r"4 of 4 indices could not be kept in .*index"):
        build(tiny_training, **sections)


def test_no_model_is_built(tiny_training, sections, monkeypatch):
    from automodel_cli.assembly import model

    monkeypatch.setattr(model, "build_model", lambda *_, **__: pytest.fail("a model"))
    results, _, _ = build(tiny_training, "--model.n_layer", "1000", **sections)
    assert results[0].built == 4
