"""Scoring a checkpoint, in order: model, data, checks, likelihood of each set, results file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.checkpoint import LoadedModel, compute_precision, describe_weights, load_model
from automodel_cli.assembly.facts import versions
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.scoring import results_file
from automodel_cli.assembly.scoring.data import (
    open_named,
    trained_arguments,
    trained_seq_len,
    training_config,
    validation_sets,
)
from automodel_cli.config.schema.results import EvaluateConfig
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer, open_tokenizer
from automodel_cli.corpus.tokenizers.same_tokenizer import extends, same_ids
from automodel_cli.corpus.tokenizers.token_bytes import TokenBytes
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.interface import DataSource, WindowDataset
from automodel_cli.dtypes import autocast_dtype
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.bigram import bigram_loss
from automodel_cli.evaluation.likelihood import Likelihood, evaluate, summarise
from automodel_cli.plain_text import for_shell

FORMAT = "automodel-results/1"
_DEFAULT_SEQ_LEN = 1024
_RUN_WINDOWS = 4096  # windows that are turned into one array at a time for the bigram model


def run(
    cfg: EvaluateConfig, *, reporter: Reporter | None = None, trust: Sequence[str] = ()
) -> results_file.StoredResults:
    """Score ``cfg.checkpoint`` on each entry of ``cfg.data``.

    Args:
        trust: files and modules whose code may build the model.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: no data is named or known, or windows longer than the model's context.
        DataError: the data does not fit the model's vocabulary or tokenizer.
    """
    reporter = reporter or Reporter()
    results_file.check_output(cfg.output)
    device = this_machine.pick_device(cfg.device)
    this_machine.bound_the_heap()
    loaded = load_model(cfg.checkpoint, device=device, trust=trust, averaged=cfg.ema)
    for note in loaded.notes:
        reporter.say(note)
    trained_as = training_config(loaded.path)
    seq_len = _seq_len(cfg, loaded, trained_seq_len(trained_as))
    like = trained_arguments(trained_as, cfg.intra_document, cfg.raw_dtype)
    sets = {name: open_named(name, seq_len, trained_as=like) for name in cfg.data} or validation_sets(
        loaded.path, trained_as, seq_len, like=like
    )
    precision = compute_precision(cfg.precision, loaded, device)
    scores = {name: _score(name, dataset, cfg, loaded, device, precision, reporter) for name, dataset in sets.items()}
    results = {
        "format": FORMAT,
        "checkpoint": describe_weights(loaded),
        **total(list(scores.values())).as_dict(),
        "sets": [
            {
                "data": name,
                "files": [path.name for path in sets[name].token_files],
                "fingerprint": sets[name].describe().fingerprint,
                "split": sets[name].describe().split,
                **score.as_dict(),
            }
            for name, score in scores.items()
        ],
        "settings": {
            "seq_len": seq_len,
            "intra_document": "intra_document" in like,
            "batch_size": cfg.batch_size,
            "limit_batches": cfg.limit_batches,
            "precision": precision,
            "device": device.type,
        },
        "versions": versions(),
    }
    if cfg.bigram is not None:
        results["bigram"] = _bigram(cfg, sets, loaded, seq_len, like.get("raw_dtype"))
    return results_file.StoredResults(results, results_file.store(results, cfg.output, loaded.path, list(sets)))


# -------------------------------------------------------------------------------------- one data set


def _score(
    name: str,
    dataset: DataSource,
    cfg: EvaluateConfig,
    loaded: LoadedModel,
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> Likelihood:
    for note in dataset.notes:
        reporter.say(note)
    _check_fits(name, dataset, loaded)
    loader = EvalLoader(dataset, cfg.batch_size, limit_batches=cfg.limit_batches)
    batches = loader.num_batches or 0
    return evaluate(
        loaded.model,
        loader,
        token_bytes=_token_bytes(cfg, dataset, loaded, reporter),
        device=device,
        autocast_dtype=autocast_dtype(precision),
        progress=lambda done: reporter.progress(done, batches, name),
    )


def _check_fits(name: str, dataset: DataSource, loaded: LoadedModel) -> None:
    """Check that data and model mean the same text by the same id.

    Raises:
        DataError: another vocabulary, or another tokenizer with as many ids.
    """
    dataset.check_vocab(loaded.model.vocab_size)
    travelled, manifest = loaded.tokenizer, dataset.manifest
    stored = loaded.facts.get("tokenizer")
    if not stored and travelled is not None:
        stored = {"name": travelled.name, "fingerprint": travelled.fingerprint()}
    own = manifest.tokenizer if manifest is not None else None
    if not stored or not own or stored["fingerprint"] == own["fingerprint"]:
        return
    # They may be one vocabulary in two kinds of files, or the model's has control tokens that the text had no use for.
    folder = manifest.tokenizer_folder if manifest is not None else None
    alike = False
    if travelled is not None and folder is not None and travelled.fingerprint() == stored["fingerprint"]:
        of_data = load_tokenizer(folder)
        alike = same_ids(travelled, of_data) or extends(travelled, of_data)
    if not alike:
        raise DataError(
            f"{name} was tokenized with {own['name']} ({own['fingerprint']}), "
            f"the model was trained with {stored['name']} ({stored['fingerprint']})",
            f"make the token files with the checkpoint's tokenizer: --tokenizer {for_shell(loaded.path / 'tokenizer')}",
        )


def _token_bytes(
    cfg: EvaluateConfig, dataset: DataSource, loaded: LoadedModel, reporter: Reporter
) -> TokenBytes | None:
    """Bytes each id stands for: by the tokenizer asked for, the checkpoint's, or the corpus' own."""
    if cfg.tokenizer is not None:
        tokenizer: Tokenizer | None = open_tokenizer(cfg.tokenizer)
    else:
        tokenizer = loaded.tokenizer
        folder = dataset.manifest.tokenizer_folder if dataset.manifest is not None else None
        if tokenizer is None and folder is not None and folder.is_dir():
            tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        return None
    if isinstance(dataset, WindowDataset) and dataset.max_token_id() >= tokenizer.vocab_size:
        raise DataError(
            f"the data holds token id {dataset.max_token_id():,}, {tokenizer.name} has {tokenizer.vocab_size:,} ids",
            "name the tokenizer that made the data with --tokenizer",
        )
    known = tokenizer.text_bytes()
    if known is None:
        reporter.say(f"no bits per byte: {tokenizer.name} does not keep texts as they are (white space, letters)")
    return known


def total(scores: list[Likelihood]) -> Likelihood:
    """All sets as one: sums over sums, so that a small set does not weigh like a large one."""
    sizes = [score.bytes for score in scores]
    known = [size for size in sizes if size is not None]
    return summarise(
        sum(score.loss * score.tokens for score in scores),
        sum(score.tokens for score in scores),
        sum(known) if len(known) == len(sizes) else None,
        sum(score.seconds for score in scores),
    )


# ---------------------------------------------------------------------------------- what to score how


def _seq_len(cfg: EvaluateConfig, loaded: LoadedModel, trained: int | None) -> int:
    """The window: as asked, else as trained, else the model's context."""
    context = loaded.model.max_seq_len
    seq_len = cfg.seq_len or trained or context or _DEFAULT_SEQ_LEN
    if context is not None and seq_len > context:
        raise ConfigError(
            f"seq_len {seq_len} is longer than the model's context of {context}",
            f"give --seq-len {context} or less",
        )
    return seq_len


# ------------------------------------------------------------------------------- the bigram baseline


def _bigram(
    cfg: EvaluateConfig,
    sets: Mapping[str, DataSource],
    loaded: LoadedModel,
    seq_len: int,
    raw_dtype: str | None,
) -> dict[str, Any]:
    """A bigram model of the training tokens, scored on the very tokens that the model was scored on."""
    assert cfg.bigram is not None
    like = {} if raw_dtype is None else {"raw_dtype": raw_dtype}
    training = open_named(cfg.bigram, seq_len, held_out=False, trained_as=like)
    if not isinstance(training, WindowDataset) or not all(isinstance(one, WindowDataset) for one in sets.values()):
        raise ConfigError("the bigram model is of all tokens, conversations are scored on some", "leave --bigram out")
    training.check_vocab(loaded.model.vocab_size)
    limit = None if cfg.limit_batches is None else cfg.limit_batches * cfg.batch_size
    held_out = [run for dataset in sets.values() for run in token_runs(dataset, limit)]  # type: ignore[arg-type]
    found = bigram_loss(token_runs(training), held_out, vocab_size=loaded.model.vocab_size)
    return {"loss": found.loss, "alpha": found.alpha, "tokens": found.tokens, "data": cfg.bigram}


def token_runs(dataset: WindowDataset, limit: int | None = None) -> Iterator[np.ndarray]:
    """The tokens of the first ``limit`` windows (all: None) in file order, as few 1-D arrays as they allow.

    Windows that follow each other share one token; joined, each predicted token is there once. A run never
    crosses shards, whose border no window crosses either.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    for first in range(0, count, _RUN_WINDOWS):
        offsets = dataset.window_offsets(np.arange(first, min(first + _RUN_WINDOWS, count)))
        windows = np.empty((len(offsets), dataset.seq_len + 1), dtype=np.int64)
        dataset.read_windows(offsets, windows)
        follows = np.zeros(len(offsets) - 1, dtype=bool)
        if dataset.follow_each_other:
            follows = (np.diff(offsets[:, 0]) == 0) & (np.diff(offsets[:, 1]) == dataset.seq_len)
        for run in np.split(windows, np.flatnonzero(~follows) + 1):
            yield np.concatenate([run[0, :1], run[:, 1:].ravel()])
