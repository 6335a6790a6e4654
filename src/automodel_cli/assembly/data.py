"""The data sections: datasets, and the loaders around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from automodel_cli.assembly.tokenizer import RunTokenizer, plain_tokenizer_name
from automodel_cli.config.instantiate import built_arguments, instantiate
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.config.target import Target
from automodel_cli.data.loader import EvalLoader, TokenLoader, TorchLoader, is_token_windows
from automodel_cli.data.sampler import steps_for_samples
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.models.interface import CausalLM

TrainLoader = TokenLoader | TorchLoader


def build_dataset(
    cfg: PretrainConfig, target: Target, *, split: str = "train", trust: Sequence[str] = ()
) -> Any:
    """Build what a ``dataset:`` section names, with what the run knows where the section leaves it open.

    Token files take the run's seed. Megatron's keep Megatron's own; how many samples to index follows from the
    length of the run, and their tokenizer is opened without transformers where its name says all.
    """
    if not _is_megatron(target):
        return instantiate(target, "dataset", inject={"seed": cfg.rng_seed}, trust=trust)
    scheduler = cfg.step_scheduler
    every = scheduler.val_every_steps
    known = {
        "splits_to_build": split,
        "global_batch_size": scheduler.global_batch_size,
        "trainer_max_steps": scheduler.max_steps,
        "trainer_val_check_interval": every if isinstance(every, int) else None,
    }
    named = plain_tokenizer_name(target.arguments.get("tokenizer"))
    if named is not None:
        target = replace(target, arguments={**target.arguments, "tokenizer": named})
    return instantiate(target, "dataset", inject=known, trust=trust)


def _is_megatron(target: Target) -> bool:
    return target.name.rpartition(".")[2] in ("MegatronPretraining", "MegatronPretrainingConfig")


def build_train_loader(
    cfg: PretrainConfig, dataset: Any, world: World, *, trust: Sequence[str] = ()
) -> TrainLoader:
    """Batches of one update at a time, from token files or from a data set of the user's own."""
    scheduler = cfg.step_scheduler
    sizes: dict[str, Any] = {
        "global_batch_size": scheduler.global_batch_size,
        "local_batch_size": scheduler.local_rows,
        "num_epochs": scheduler.num_epochs,
        "dp_rank": world.dp_rank,
        "dp_world": world.dp_world,
    }
    if is_token_windows(dataset):
        return TokenLoader(dataset, device=world.device, **sizes)
    arguments = loader_arguments(cfg.dataloader, trust=trust)
    pin_memory = world.device.type == "cuda"
    return TorchLoader(dataset, seed=cfg.rng_seed, **{"pin_memory": pin_memory, **arguments}, **sizes)


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
    if hasattr(dataset, "check_vocab"):
        dataset.check_vocab(model.vocab_size)
    seq_len = getattr(dataset, "seq_len", None)
    if seq_len and model.max_seq_len and seq_len > model.max_seq_len:
        raise ConfigError(
            f"{what}.seq_len {seq_len} is longer than the model's context of {model.max_seq_len}",
            f"lower {what}.seq_len or raise the model's n_positions (max_position_embeddings)",
        )


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
    for name in ("seq_len", "seq_length"):
        if isinstance(getattr(dataset, name, None), int):
            return getattr(dataset, name)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset):
        item = dataset[0]
        if isinstance(item, Mapping) and "input_ids" in item:
            return len(item["input_ids"])
    return model.max_seq_len or 1


def steps_in_epochs(loader: TrainLoader, num_epochs: int) -> int | None:
    """Whole updates in N epochs; None for a data set without a length."""
    if loader.steps_per_epoch is None:
        return None
    return steps_for_samples(
        round(loader.steps_per_epoch * loader.shape.global_batch_size) * num_epochs,
        loader.shape.global_batch_size,
    )[0]


def notes(*sources: Any) -> list[str]:
    """What data sets and loaders want said once."""
    return list(dict.fromkeys(note for source in sources for note in getattr(source, "notes", ())))
