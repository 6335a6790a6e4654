"""The data sections: datasets, and the loaders around them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from automodel_cli.assembly.tokenizer import RunTokenizer, plain_tokenizer_name
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.config.horizon import batches_of, horizon_of, row_lengths_of
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import built_arguments, instantiate, resolve_function
from automodel_cli.config.targets.target import Target
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.interface import DataSource, RunValues, WindowDataset, source_of
from automodel_cli.data.loader import TorchLoader
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.data.packing import Packed, Packing
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.models.interface import CausalLM
from automodel_cli.storage.cache.settings import use_cache
from automodel_cli.text import plural

TrainLoader = TokenLoader | TorchLoader


def build_dataset(cfg: PretrainConfig, target: Target, *, split: str = "train", trust: Sequence[str] = ()) -> Any:
    """Build what a ``dataset:`` section names, with what the run knows where the section leaves it open.

    A tokenizer is opened without transformers where its name says all and the data set can do it.
    """
    use_cache(cfg.data_cache.settings)
    scheduler = cfg.step_scheduler
    every = scheduler.val_every_steps
    run = RunValues(
        cfg.rng_seed,
        split,
        _batches(cfg),
        horizon_of(cfg).steps,
        every if isinstance(every, int) else None,
    )
    if cfg.domain_mixture is not None and target is cfg.dataset:
        target = replace(target, arguments=cfg.domain_mixture.apply(target))
    declared = declared_by(target, trust)
    named = plain_tokenizer_name(target.arguments.get("tokenizer"))
    if named is not None and declared.opens_tokenizers:
        target = replace(target, arguments={**target.arguments, "tokenizer": named})
    return instantiate(target, "dataset", inject=declared.run_arguments(run), trust=trust)


def _batches(cfg: PretrainConfig) -> int | BatchSizes:
    """The number, where it is one."""
    sizes = batches_of(cfg)
    return sizes if sizes.changes else sizes.last


def declared_by(target: Target, trust: Sequence[str] = ()) -> type[DataSource]:
    """The class that ``target`` names; where it declares nothing, or may not be called, what goes for any data set."""
    kind = None
    with contextlib.suppress(ConfigError):
        kind = resolve_function(target.name, "dataset", trust=trust)
    return kind if isinstance(kind, type) and issubclass(kind, DataSource) else DataSource


def build_train_loader(cfg: PretrainConfig, dataset: Any, world: World, *, trust: Sequence[str] = ()) -> TrainLoader:
    """Batches of one update at a time, from token files or from a data set of the user's own."""
    scheduler = cfg.step_scheduler
    sizes: dict[str, Any] = {
        "global_batch_size": scheduler.global_batch_size,
        "local_batch_size": scheduler.local_rows,
        "num_epochs": scheduler.num_epochs,
        "dp_rank": world.dp_rank,
        "dp_world": world.dp_world,
    }
    if isinstance(dataset, WindowDataset):
        skip = () if cfg.spikes is None else cfg.spikes.skip_samples
        schedules = {"global_batch_size": batches_of(cfg), "row_lengths": row_lengths_of(cfg, dataset.seq_len)}
        return TokenLoader(dataset, device=world.device, skip=skip, **{**sizes, **schedules})
    for key in ("batch_size_schedule", "seq_len_schedule"):
        if getattr(scheduler, key):
            raise ConfigError(
                f"step_scheduler.{key} is for token files, and {type(dataset).__name__} reads something else",
                "leave it out",
            )
    _refuse_skipping(cfg, dataset)
    arguments = {
        "pin_memory": world.device.type == "cuda",
        **loader_arguments(cfg.dataloader, trust=trust),
        "seed": cfg.rng_seed,
        "any_rank": world.any,
        **sizes,
    }
    packing = packing_of(cfg)
    if packing is None:
        return TorchLoader(dataset, **arguments)
    return PackedLoader(dataset, packing=packing, **arguments)


def _refuse_skipping(cfg: PretrainConfig, dataset: Any) -> None:
    """Samples of a data set that is no token files cannot be gone around."""
    section = cfg.spikes
    if section is not None and (section.action == "rewind" or section.skip_samples):
        key = "action rewind" if section.action == "rewind" else "skip_samples"
        raise ConfigError(
            f"spikes.{key} goes around samples by their number, which {type(dataset).__name__} does not have",
            "use spikes.action skip or note, or token files",
        )


def packing_of(cfg: PretrainConfig) -> Packing | None:
    """How rows are packed; None: they are padded."""
    section = cfg.packed_sequence
    return Packing(section.packed_sequence_size, section.long_rows) if section.packed_sequence_size else None


def check_packing(packing: Packing, dataset: Any, model: CausalLM) -> None:
    """Check that there is something to pack and that the model takes packs.

    Raises:
        ConfigError: token files; packs longer than the model's context; a model that cannot keep rows apart.
    """
    key = f"packed_sequence.packed_sequence_size {packing.size}"
    if isinstance(dataset, WindowDataset):
        raise ConfigError(
            f"{key}: {type(dataset).__name__} reads token files in full windows, there is nothing to pack",
            "set packed_sequence_size to 0 and dataset.seq_len (seq_length) as long as you want it",
        )
    if model.max_seq_len and packing.size > model.max_seq_len:
        raise ConfigError(
            f"{key} is longer than the model's context of {model.max_seq_len}",
            "lower it, or raise the model's n_positions (max_position_embeddings)",
        )
    model.check_keeps_apart(packing.size)


def build_eval_sets(
    cfg: PretrainConfig, world: World, *, trust: Sequence[str] = ()
) -> dict[str, tuple[Any, EvalLoader]]:
    """``name -> (data set, loader)`` of every validation set, each a finite pass in file order over all ranks."""
    loaders = {}
    arguments = loader_arguments(cfg.validation_dataloader, trust=trust)
    for name, target in cfg.validation_datasets.items():
        dataset = build_dataset(cfg, target, split="validation", trust=trust)
        loaders[name] = (
            dataset,
            EvalLoader(
                dataset,
                local_batch_size=cfg.step_scheduler.local_rows,
                limit_batches=cfg.step_scheduler.limit_val_batches,
                dp_rank=world.dp_rank,
                dp_world=world.dp_world,
                collate_fn=arguments.get("collate_fn"),
                packing=None if isinstance(dataset, WindowDataset) else packing_of(cfg),
            ),
        )
    return loaders


def loader_arguments(target: Target | None, *, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a ``dataloader:`` section, with a named ``collate_fn`` made into the function."""
    return {} if target is None else built_arguments(target, "dataloader", trust=trust)


def check_fits(dataset: Any, model: CausalLM, *, what: str) -> None:
    """Check token ids against the vocabulary and rows against the context before anything is trained.

    Raises:
        DataError: an id the model has no row for.
        ConfigError: sequences longer than the model takes.
    """
    source = source_of(dataset)
    source.check_vocab(model.vocab_size)
    seq_len = source.describe().seq_len
    if seq_len and model.max_seq_len and seq_len > model.max_seq_len:
        raise ConfigError(
            f"{what}.seq_len {seq_len} is longer than the model's context of {model.max_seq_len}",
            f"lower {what}.seq_len or raise the model's n_positions (max_position_embeddings)",
        )


def row_length(cfg: PretrainConfig, dataset: Any, tokenizer: RunTokenizer | None, model: CausalLM) -> int:
    """Tokens of a row of the training data, once data, tokenizer and model were found to fit together.

    Raises:
        DataError: an id the model has no row for.
        ConfigError: rows or packs longer than the model takes.
    """
    check_fits(dataset, model, what="dataset")
    check_tokenizer(tokenizer, model)
    packing = packing_of(cfg)
    if packing is None:
        return sequence_length(dataset, model)
    check_packing(packing, dataset, model)
    return packing.size


def check_tokenizer(tokenizer: RunTokenizer | None, model: CausalLM) -> None:
    """Check that every id of the tokenizer has a row in the model.

    Raises:
        DataError: the vocabulary of the data is larger than the model's.
    """
    if tokenizer is not None and tokenizer.tokenizer.vocab_size > model.vocab_size:
        found = tokenizer.tokenizer
        raise DataError(
            f"the data's tokenizer {found.name} has {found.vocab_size:,} ids, the model only {model.vocab_size:,}",
            f"set model.vocab_size to {found.vocab_size} or more",
        )


def sequence_length(dataset: Any, model: CausalLM) -> int:
    """Tokens of a row: the data set's, else of its first item, else the model's context."""
    declared = source_of(dataset).describe().seq_len
    if declared is not None:
        return declared
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset):
        item = dataset[0]
        if isinstance(item, Mapping) and "input_ids" in item:
            return len(item["input_ids"])
    return model.max_seq_len or 1


def samples_in_epochs(cfg: PretrainConfig, loader: TrainLoader, world: World, say: Callable[[str], None]) -> int | None:
    """Samples, or packs, of ``num_epochs`` epochs (one for null); None where that is not known.

    Packs are counted only where the length of the run depends on them: the data set is read for it, each rank a part.

    Raises:
        ConfigError: the run would end with an iterable data set that is packed.
    """
    epochs = cfg.step_scheduler.num_epochs
    if isinstance(loader, PackedLoader):
        horizon = horizon_of(cfg)
        if horizon.timed or (horizon.steps is not None and (epochs is None or loader.iterable)):
            return None
        if loader.rows_per_epoch is None:
            raise ConfigError(
                "how many packs an iterable data set makes is only known when it was read",
                "set step_scheduler.max_steps",
            )
        return _count_packs(loader, epochs or 1, world, say)
    samples = loader.samples_per_epoch
    return None if samples is None else samples * (epochs or 1)


def _count_packs(loader: PackedLoader, epochs: int, world: World, say: Callable[[str], None]) -> int:
    say(
        f"reading {loader.rows_per_epoch:,} rows once to count the packs of {plural(epochs, 'epoch')} "
        "(step_scheduler.max_steps with num_epochs: null starts without)"
    )
    lengths = np.zeros(loader.rows_per_epoch or 0, dtype=np.int64)
    ranks = 1 if world.planned else world.size
    for rank, own in enumerate(world.gather(loader.lengths(world.rank, ranks))[:ranks]):
        lengths[rank::ranks] = own
    found = Packed(0, 0, 0, 0)
    for window in loader.all_windows(lengths, epochs):
        found = found.with_window(window)
    loader.counted = found
    return found.packs


def position(loader: TrainLoader, world: World) -> dict[str, Any]:
    """The loader's position for a checkpoint; where ranks have their own, with that of each. Every rank calls it."""
    state = loader.state_dict()
    if world.dp_world == 1 or not getattr(loader, "per_rank_state", False):
        return state
    own = {key: value for key, value in state.items() if key not in ("plan", "plan_hash")}
    by_rank = dict(world.gather([world.dp_rank, own]))
    return {**state, "by_dp_rank": [by_rank[rank] for rank in range(world.dp_world)]}


def notes(*sources: Any) -> list[str]:
    """What data sets and loaders want said once."""
    return list(dict.fromkeys(note for source in sources for note in getattr(source, "notes", ())))
