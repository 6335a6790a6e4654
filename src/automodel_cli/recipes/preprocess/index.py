"""Sample indices ahead of a job: what a pretraining run would build at its start, built by one cheap process.

Each data section of the run's configuration is opened exactly as ``pretrain`` opens it, so that its indices have the
names, the plan and the stamp that the job will look for. Nothing else of the run is built: no model, no optimizer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly import summary
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.interface import IndexReport, source_of
from automodel_cli.errors import DataError


@dataclass(frozen=True)
class Indexed:
    """What became of one data section; ``folder`` is None where it needs no index."""

    section: str
    folder: Path | None
    built: int
    found: int
    seconds: float


def run(cfg: PretrainConfig, *, trust: Sequence[str] = (), reporter: Reporter | None = None) -> list[Indexed]:
    """Build the indices of ``cfg``'s training and validation sets that are not there yet.

    Raises:
        ConfigError: a section that contradicts itself.
        DataError: files that are missing or damaged, or an index that cannot be kept in its folder.
    """
    reporter = reporter or Reporter()
    sections = {"training": (cfg.dataset, "train")}
    sections |= {f"validation: {name}": (target, "validation") for name, target in cfg.validation_datasets.items()}
    datasets: dict[str, Any] = {}
    results = []
    for section, (target, split) in sections.items():
        started = time.perf_counter()
        dataset = data_assembly.build_dataset(cfg, target, split=split, trust=trust)
        datasets[section] = dataset
        for note in data_assembly.notes(dataset):
            reporter.say(f"note: {note}")
        report = source_of(dataset).index_report()
        results.append(_outcome(section, report, time.perf_counter() - started))
    table = summary.blend_table(datasets)
    if table is not None:
        reporter.columns(*table)
    return results


def _outcome(section: str, report: IndexReport | None, seconds: float) -> Indexed:
    if report is None:
        return Indexed(section, None, 0, 0, seconds)
    if report.lost:
        raise DataError(
            f"{report.lost} of {report.needed} indices could not be kept in {report.folder}",
            "; ".join(report.notes) or "give dataset.index_mapping_dir a folder that can be written",
        )
    return Indexed(section, report.folder, report.built, report.needed - report.built, seconds)
