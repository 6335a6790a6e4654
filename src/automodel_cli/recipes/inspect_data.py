"""``automodel inspect-data``: the text that a run is trained on at a step, and where it comes from.

The order of samples is a function of the configuration and of the plan in a checkpoint, so a step is looked up, not
replayed; no model is built. Of several checkpoints the oldest that is not before the step counts: its mixture and its
configuration are those of then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.data import build_dataset
from automodel_cli.assembly.tokenizer import RunTokenizer, run_tokenizer
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.load_step import position_of
from automodel_cli.checkpoint.run_files import CONFIG_NAME
from automodel_cli.config.horizon import batches_of
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.results import InspectDataConfig
from automodel_cli.data.interface import WindowDataset
from automodel_cli.data.position import MOST_SAMPLES, Position, check_plan, checked_position
from automodel_cli.data.rows import Row, read_rows
from automodel_cli.data.skipped import Skipped
from automodel_cli.data.step_samples import samples_of_step
from automodel_cli.errors import CheckpointError, ConfigError, DataError
from automodel_cli.metrics.log_file import METRICS_NAME, decode_line, lines_of
from automodel_cli.metrics.read import read_metrics

_SHORT = 600  # characters of a row's text that are shown without --full
_MOST_SAMPLES = 100_000  # looked up at once


@dataclass(frozen=True)
class _Source:
    """What there is of a run: its checkpoints by step, its configuration, its metrics; a YAML file has the second."""

    config: Path
    checkpoints: Mapping[int, Path] = field(default_factory=dict)
    metrics: Path | None = None


def run(cfg: InspectDataConfig) -> dict[str, Any]:
    """The rows of a step, as plain JSON: ``rows`` with sample, place and text (or ids), and what they are of.

    Raises:
        ConfigError, CheckpointError, DataError: there is no such run, step or rank, or its data are not what they were.
    """
    source = _find(Path(cfg.run))
    checkpoint = _checkpoint_for(source, cfg.step)
    stored = load_config(PretrainConfig, _config_of(source, checkpoint, cfg.step), trust=cfg.trust)
    dataset = build_dataset(stored, stored.dataset, trust=cfg.trust)
    if not isinstance(dataset, WindowDataset):
        read_rows(dataset, np.empty(0))  # which says why not
    told = () if stored.spikes is None else stored.spikes.skip_samples
    skipped = Skipped.of((*told, *_gone_around(source), *_brought_to(dataset, checkpoint).ranges))
    samples = _samples(cfg, source, stored, dataset, skipped)
    shown = samples if cfg.full else samples[: cfg.rows]
    tokenizer = run_tokenizer(stored, dataset)
    return {
        "run": cfg.run,
        "step": cfg.step,
        "trained": cfg.step is not None and any(step >= cfg.step for step in _trained(source, dataset.seq_len)),
        "checkpoint": None if checkpoint is None else checkpoint.name,
        "first_sample": int(samples[0]),
        "end_sample": int(samples[-1]) + 1,
        "samples": len(samples),
        "rows": [
            _shown(number, row, tokenizer, full=cfg.full) for number, row in enumerate(read_rows(dataset, shown), 1)
        ],
    }


def _find(path: Path) -> _Source:
    path = layout.followed(path)
    if path.is_file():
        return _Source(path)
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}", "name a run folder, a checkpoint, or the YAML file of a run")
    if layout.is_complete(path):
        step = layout.read_step_manifest(path)["step"]
        return _Source(path / "config.yaml", {step: path})
    checkpoints = {step: layout.step_folder(path, step) for step in layout.list_steps(path)}
    config = path / CONFIG_NAME
    if not config.is_file():
        raise CheckpointError(
            f"{path} is no run folder: it has no {CONFIG_NAME}", "name one, or the YAML file of a run"
        )
    metrics = path / METRICS_NAME
    return _Source(config, checkpoints, metrics if metrics.is_file() else None)


def _checkpoint_for(source: _Source, step: int | None) -> Path | None:
    later = [known for known in source.checkpoints if step is not None and known >= step]
    if later:
        return source.checkpoints[min(later)]
    return source.checkpoints[max(source.checkpoints)] if source.checkpoints else None


def _config_of(source: _Source, checkpoint: Path | None, step: int | None) -> Path:
    """Of a step that a checkpoint has seen the checkpoint's; of later ones that of the run as it is now."""
    seen = checkpoint is not None and (step is None or max(source.checkpoints) >= step)
    return checkpoint / "config.yaml" if checkpoint is not None and seen else source.config


def _brought_to(dataset: WindowDataset, checkpoint: Path | None) -> Skipped:
    """Let the data set have the history that the checkpoint knows; what the run skips.

    Raises:
        DataError: the data are not those of the checkpoint.
    """
    if checkpoint is None:
        return Skipped()
    state = position_of(checkpoint)
    stored: Position = checked_position(state)
    if dataset.continue_from(stored.plan, stored.samples_consumed) is None:
        check_plan(state, dataset.plan())
    return Skipped.of(stored.skipped)


def _gone_around(source: _Source) -> list[tuple[int, int]]:
    """Samples that the run went around on its way, which its next checkpoint will know."""
    records = [] if source.metrics is None else [decode_line(line) for line, _ in lines_of(source.metrics)]
    found = [one["skipped_samples"] for one in records if one is not None and "skipped_samples" in one]
    return [(one[0], one[1]) for one in found if isinstance(one, list) and _is_range(one)]


def _is_range(found: list[Any]) -> bool:
    return len(found) == 2 and all(type(one) is int and 0 <= one <= MOST_SAMPLES for one in found)


def _samples(
    cfg: InspectDataConfig, source: _Source, stored: PretrainConfig, dataset: WindowDataset, skipped: Skipped
) -> np.ndarray:
    """The samples to show, int64 ``[N]``."""
    if cfg.samples is not None:
        first, end = map(int, cfg.samples.split(":"))
        if not 0 < end - first <= _MOST_SAMPLES:
            raise ConfigError(f"samples {cfg.samples} are {max(end - first, 0):,}", f"give 1 to {_MOST_SAMPLES:,}")
        return np.arange(first, end)
    assert cfg.step is not None
    now = batches_of(stored)
    sizes = [now, *map(BatchSizes.of, _stored_sizes(source))]
    first, end = samples_of_step(cfg.step, _trained(source, dataset.seq_len), sizes, now=now)
    if cfg.rank is not None:
        first, end = _of_rank(cfg.rank, first, end, _ranks(stored, source))
    return skipped.samples(np.arange(first, end))


def _of_rank(rank: int, first: int, end: int, ranks: int) -> tuple[int, int]:
    if rank >= ranks or (end - first) % ranks:
        raise ConfigError(f"rank {rank}: the run has {ranks} data-parallel ranks", f"give 0 to {ranks - 1}")
    each = (end - first) // ranks
    return first + rank * each, first + (rank + 1) * each


def _ranks(stored: PretrainConfig, source: _Source) -> int:
    facts = [layout.read_step_manifest(folder)["facts"] for folder in source.checkpoints.values()]
    known = [one["fast_path"]["processes"] for one in facts if (one.get("fast_path") or {}).get("processes")]
    return world_assembly.planned(stored, known[-1] if known else None).dp_world


def _stored_sizes(source: _Source) -> list[int]:
    facts = [layout.read_step_manifest(folder)["facts"] for folder in source.checkpoints.values()]
    return [size for one in facts if (size := (one.get("batch") or {}).get("global"))]


def _trained(source: _Source, seq_len: int) -> dict[int, int]:
    """Samples trained after each update that metrics or a checkpoint know of."""
    found: dict[int, int] = {}
    if source.metrics is not None:
        try:
            columns = read_metrics(source.metrics).train
        except DataError:  # nothing logged yet
            columns = {}
        if "tokens_seen" in columns:
            tokens = columns["tokens_seen"]
            known = np.isfinite(tokens) & (tokens >= 0) & (tokens <= 2**53)
            steps, samples = columns["step"][known], tokens[known].astype(np.int64) // seq_len
            found = dict(zip(steps.tolist(), samples.tolist(), strict=True))
    for step, folder in source.checkpoints.items():
        position = checked_position(position_of(folder))
        found[step] = Skipped.of(position.skipped).left_before(position.samples_consumed)
    return found


def _shown(number: int, row: Row, tokenizer: RunTokenizer | None, *, full: bool) -> dict[str, Any]:
    pieces = [piece.to_json() for piece in row.pieces]
    ids = row.tokens[row.tokens >= 0].tolist()  # Megatron's padding is below 0
    if tokenizer is None:
        return {"row": number, "sample": row.sample, "pieces": pieces, "ids": ids if full else ids[: _SHORT // 6]}
    text = tokenizer.tokenizer.decode(ids)
    cut = not full and len(text) > _SHORT
    return {
        "row": number,
        "sample": row.sample,
        "pieces": pieces,
        "text": f"{text[:_SHORT]}" if cut else text,
        "characters": len(text),
    }
