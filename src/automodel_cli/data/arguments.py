"""Arguments of data sets and loaders that files can name. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from automodel_cli.batch_sizes import BatchSizes


@dataclass
class NanogptArguments:
    """What ``NanogptDataset`` takes.

    Args:
        file_pattern: a glob (sorted), a file, a corpus folder, or a list of them, each a path or a URL
            (``s3://bucket/corpus``). A corpus' first shard means all of its shards.
        seq_len: tokens a window is trained on, T.
        shuffle_files: permute all windows, anew each epoch. (The name is the one that configurations have.)
        align_to_bos: windows begin where documents begin.
        intra_document: attention does not leave a token's own document, and positions count from its beginning
            (from the row's, where the document began before).
        bos_token: the id between documents; from the manifest where there is one.
        fim: fill-in-the-middle in training, ``{rate: 0.5, spm_rate: 0.5}``: parts of documents change places;
            ``prefix``, ``middle``, ``suffix`` (ids or special tokens) mark them and ``separator`` is the id between
            documents, where the data's tokenizer does not say.
        seed: of the shuffle.
        mmap: false for file systems that cannot map files; auto finds out.
        raw_dtype: uint16 or uint32 for files without a header and without a manifest, npy to read NumPy's ``.npy``.
        drop_last, infinite: keys of old configurations. Tails are always dropped and
            ``step_scheduler.num_epochs`` says how often the data is read; other wishes are answered in
            ``notes``.
    """

    file_pattern: str | Path | Sequence[str | Path]
    seq_len: int
    _: KW_ONLY
    shuffle_files: bool = False
    align_to_bos: bool = False
    intra_document: bool = False
    bos_token: int | None = None
    fim: Mapping[str, Any] | None = None
    seed: int = 0
    mmap: bool | Literal["auto"] = "auto"
    raw_dtype: str | None = None
    drop_last: bool | None = None
    infinite: bool | None = None


@dataclass
class FimArguments:
    """What ``fim`` of a data set takes: fill-in-the-middle (``data.fim``).

    Args:
        rate: share of documents that are rearranged.
        spm_rate: share of those in which the suffix comes first.
        prefix, middle, suffix: the tokens that mark the parts, ids or names of special tokens; default: those of the
            data's tokenizer, where it has such.
        separator: id between documents; default: as the data say.
    """

    _: KW_ONLY
    rate: float = 0.5
    spm_rate: float = 0.5
    prefix: int | str | None = None
    middle: int | str | None = None
    suffix: int | str | None = None
    separator: int | None = None


@dataclass
class MegatronArguments:
    """What ``MegatronPretraining`` takes.

    Args:
        paths: a glob, a prefix, a folder, a list of them, weights and prefixes in turn, a mapping by split, or a
            .json file with one of these; URLs (``s3://bucket/prefix``) wherever a path may stand.
        seq_length: tokens a sample is trained on, T.
        tokenizer: an opened one, or the name or folder of one: for the end-of-document and padding ids. Default: the
            one that ``preprocess megatron`` left beside the files; another than that is refused.
        split: shares of training, validation and test in each file's sequences; not used where ``paths`` names
            files for each split.
        splits_to_build: which of train, validation and test this is; default train.
        index_mapping_dir: where indices are kept between runs; default: a folder beside the first prefix.
        num_train_samples, num_val_samples, num_test_samples: samples wanted; default: what the run needs, else one
            epoch.
        seed: of Megatron's shuffles; it is not the run's seed.
        create_attention_mask: items carry the mask as a matrix. Batches never do: models make their own.
        domains: of a weighted blend, for each prefix in order: ``{name: web, objective_weight: 0.5}``; the section
            ``domain_mixture`` supplies it.
        reset_position_ids, reset_attention_mask, eod_mask_loss: positions, attention and loss end with a document.
        order: "megatron", sample for sample that of megatron-core; "stateless", which needs no index; or "file",
            windows as they lie in the files.
        index_names: "megatron" names cached indices as megatron-core does.
        add_extra_token_to_sequence: false: the last token of a sample has no label.
        drop_last_partial_validation_sequence: false: the last validation sample may be padded.
        float32_tail: then count samples in float32 as megatron-core does.
        mid_level_dataset_surplus: how many more samples are built of each part of a weighted blend.
        mmap_bin_files: false for file systems that cannot map files.
        num_dataset_builder_threads: indices built at a time.
        trainer_limit_val_batches, trainer_val_check_interval, trainer_max_steps, global_batch_size: from which the
            number of samples follows; the run supplies the last three.
        trainer_limit_test_batches: understood; the test split is one epoch.
        object_storage_config: of ``paths`` in object storage, ``{path_to_idx_cache: FOLDER, bin_chunk_nbytes: N}``:
            where ``.idx`` files are kept, and the largest piece of a ``.bin`` that is read at once. It need not be
            there.
    """

    paths: str | Path | Sequence[Any] | Mapping[str, Any]
    seq_length: int = 2048
    tokenizer: Any = None
    _: KW_ONLY
    split: str | Sequence[float] = "900,50,50"
    splits_to_build: str | Sequence[str] | None = None
    index_mapping_dir: str | Path | None = None
    num_train_samples: int | None = None
    num_val_samples: int | None = None
    num_test_samples: int | None = None
    seed: int = 1234
    domains: Sequence[Mapping[str, Any]] | None = None
    create_attention_mask: bool = False
    reset_position_ids: bool = False
    reset_attention_mask: bool = False
    eod_mask_loss: bool = False
    order: Literal["megatron", "stateless", "file"] = "megatron"
    index_names: Literal["readable", "megatron"] = "readable"
    add_extra_token_to_sequence: bool = True
    drop_last_partial_validation_sequence: bool = True
    float32_tail: bool = False
    mid_level_dataset_surplus: float = 0.005
    mmap_bin_files: bool = True
    num_dataset_builder_threads: int = 1
    trainer_limit_val_batches: int | float | None = 1
    trainer_limit_test_batches: int | float | None = None
    trainer_max_steps: int | None = None
    trainer_val_check_interval: int | None = None
    global_batch_size: int | BatchSizes | None = None
    object_storage_config: Mapping[str, Any] | None = None


@dataclass
class ObjectStorageArguments:
    """What ``MegatronArguments.object_storage_config`` takes: the fields of Megatron-Core's ``ObjectStorageConfig``."""

    _: KW_ONLY
    path_to_idx_cache: str | Path | None = None
    bin_chunk_nbytes: int | None = None


@dataclass
class MixtureArguments:
    """What ``Mixture`` takes.

    Args:
        sources: by name, each with ``file_pattern`` (and what else ``NanogptDataset`` takes) or ``paths`` (and what
            else ``MegatronPretraining`` takes), with ``fim`` where its documents are to be rearranged, and ``weight``:
            its share of the windows, whatever the weights add up to. Without any weight that is its size. With
            ``objective_weight`` its share in what is trained for is another than that of the windows.
        seq_len: tokens a window is trained on, T, for all sources.
        stages: weights that change: ``{until: 0.8, weights: {web: 0.5, code: 0.5}, ramp: true}`` in order. ``until``
            is a share of the run, ``until_step`` a step, ``until_tokens`` a number of tokens; the last stage needs
            none. Without ``weights`` those of the sources hold; with ``ramp`` they are come to in a straight line
            over the stage.
        max_passes: a source may be read that often; more is refused before the run.
        seed: of the order of each source's windows.
        split, global_batch_size, max_steps: the run supplies them.
    """

    sources: Mapping[str, Mapping[str, Any]]
    seq_len: int
    _: KW_ONLY
    stages: Sequence[Mapping[str, Any]] | None = None
    max_passes: float | None = None
    seed: int = 0
    split: Literal["train", "validation"] = "train"
    global_batch_size: int | BatchSizes | None = None
    max_steps: int | None = None


@dataclass
class StageArguments:
    """One entry of ``MixtureArguments.stages``."""

    _: KW_ONLY
    until: float | None = None
    until_step: int | None = None
    until_tokens: float | None = None
    weights: Mapping[str, float] | None = None
    ramp: bool = False


@dataclass
class ChatArguments:
    """What ``ChatDataset`` takes.

    Args:
        file_pattern: a folder of conversations, a token file in it (``val_gsm8k.bin``), a glob, or a list.
        max_tokens: of a row; null: conversations are as long as they are.
        long_conversations: what becomes of longer ones: truncate cuts them there, drop leaves them out.
        split: of a folder, train or validation; the run supplies it.
    """

    file_pattern: str | Path | Sequence[str | Path]
    _: KW_ONLY
    max_tokens: int | None = None
    long_conversations: Literal["truncate", "drop"] = "truncate"
    split: Literal["train", "validation"] = "train"


@dataclass
class TorchLoaderArguments:
    """What ``TorchLoader`` takes; the run supplies the first six and ``any_rank``.

    Args:
        shuffle: a stateless permutation of the indices, anew each epoch; map-style only.
        collate_fn: list of items -> mapping or Batch; default ``default_collate``.
        num_workers, prefetch_factor, timeout, multiprocessing_context, worker_init_fn, pin_memory: torch's.
        batch_size, persistent_workers, drop_last, in_order, sampler, ...: what configurations for torch's
            loaders carry. ``batch_size`` must be ``local_batch_size``; one iterator serves the whole run, in
            order, and drops the last incomplete update; a sampler of one's own would have no position and is
            refused.
        any_rank: whether something is so on any rank; then ranks that hold unequally many items stop together.
    """

    dataset: Any
    _: KW_ONLY
    global_batch_size: int
    local_batch_size: int
    dp_rank: int = 0
    dp_world: int = 1
    num_epochs: int | None = 1
    seed: int = 0
    shuffle: bool = False
    collate_fn: Callable[[list[Any]], Any] | None = None
    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int | None = None
    timeout: float = 0
    multiprocessing_context: Any = None
    worker_init_fn: Callable[[int], None] | None = None
    batch_size: int | None = None
    persistent_workers: bool = False
    drop_last: bool | None = None
    in_order: bool = True
    sampler: Any = None
    batch_sampler: Any = None
    pin_memory_device: str = ""
    snapshot_every_n_steps: int | None = None
    any_rank: Callable[[bool], bool] | None = None
