"""Roles of open sections: closed lists of what each allows.

A list of packages would not do: torch and transformers hold callables that run shell commands, download code or
evaluate text. So a name must match one of a role's patterns before anything is imported, and the object it resolves
to must be defined where the role expects it and be of the role's kind. All else is code that the user has to trust by
name (`allowlist`). Our own targets are named too, not imported: the rooms that they are in lie above this one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DATA, _MODELS, _CORPUS = "automodel_cli.data", "automodel_cli.models", "automodel_cli.corpus.tokenizer"
_CLASS = r"transformers\.(?:models\.[a-z]\w*\.[a-z]\w*\.)?[A-Z]\w*"


@dataclass(frozen=True)
class ClassRule:
    """A kind of foreign class: subclasses of ``base`` defined in ``module``, and what of them may be called.

    Attributes:
        module: prefix of the module that really defines the class.
        base: dotted name of the class it must derive from; empty: any class of that module.
        named: pattern of the class's own name; empty: any.
        constructor: whether the class itself may be called.
        methods: class methods that may be called.
    """

    module: str
    base: str = ""
    named: str = ""
    constructor: bool = False
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """What a number, and each number of a list, may be: from ``low`` up, and below ``below``."""

    low: float = 0.0
    below: float = math.inf

    def hold(self, value: Any) -> bool:
        """True where ``value`` keeps them; what is no number is not judged here."""
        if isinstance(value, (list, tuple)):
            return all(self.hold(item) for item in value)
        return not isinstance(value, (int, float)) or isinstance(value, bool) or self.low <= value < self.below

    def __str__(self) -> str:
        return f"a number from {self.low:g} up" + (f", below {self.below:g}" if self.below < math.inf else "")


@dataclass(frozen=True)
class Role:
    """What may stand as ``_target_`` in one kind of place, and how it is called."""

    name: str
    kind: str
    ours: Mapping[str, str] = field(default_factory=dict)
    """Targets of this package -> what declares their arguments, in a module without torch; "": nothing does."""
    patterns: tuple[str, ...] = ()
    rules: tuple[ClassRule, ...] = ()
    functions: tuple[str, ...] = ()
    """Foreign functions, by the names they may be given."""
    injected: tuple[str, ...] = ()
    """Arguments that the run itself supplies; a file may not give them."""
    extra: Mapping[str, type] = field(default_factory=dict)
    """Keys of the section that the assembly takes out before the call."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Arguments of old files that foreign targets do not take, and why nothing is lost."""
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """What numbers have to keep, whatever is called: NaN and infinity never do."""
    default_target: str | None = None

    def matches(self, name: str) -> bool:
        """True where a foreign name could be of this role; the object still has to prove it."""
        return name in self.functions or any(re.fullmatch(pattern, name) for pattern in self.patterns)


# Other models are of no use here, and some load files of other libraries in ways of their own.
_CAUSAL_LM = r"\w+(?:ForCausalLM|LMHead(?:Model)?)"
_HF_MODEL_RULES = (
    ClassRule(
        "transformers.models.auto.modeling_auto",
        named="AutoModelForCausalLM",
        methods=("from_config", "from_pretrained"),
    ),
    ClassRule(
        "transformers.models.",
        base="transformers.modeling_utils.PreTrainedModel",
        named=_CAUSAL_LM,
        constructor=True,
        methods=("from_config", "from_pretrained"),
    ),
)
_HF_CONFIG_RULES = (
    ClassRule("transformers.models.auto.configuration_auto", methods=("from_pretrained", "for_model")),
    ClassRule(
        "transformers.models.",
        base="transformers.configuration_utils.PreTrainedConfig",
        constructor=True,
        methods=("from_pretrained",),
    ),
)
_HF_TOKENIZER_RULES = (
    ClassRule("transformers.models.auto.tokenization_auto", methods=("from_pretrained",)),
    ClassRule(
        "transformers.",
        base="transformers.tokenization_utils_base.PreTrainedTokenizerBase",
        methods=("from_pretrained",),
    ),
)
_OPTIMIZER = "torch.optim.optimizer.Optimizer"

ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role(
            "model",
            "a model builder",
            ours={
                f"{_MODELS}.gpt2.build_gpt2_model": f"{_MODELS}.gpt2_config.GPT2Config",
                f"{_MODELS}.gpt.build_gpt_model": f"{_MODELS}.gpt_config.GPTConfig",
                f"{_MODELS}.llama.build_llama_model": f"{_MODELS}.llama_config.LlamaConfig",
                f"{_MODELS}.hf.from_config": f"{_MODELS}.hf_arguments.FromConfig",
                f"{_MODELS}.hf.from_pretrained": f"{_MODELS}.hf_arguments.FromPretrained",
            },
            patterns=(_CLASS + r"(?:\.from_config|\.from_pretrained)?",),
            rules=_HF_MODEL_RULES,
            ignored={"is_meta_device": "models are built on the meta device wherever that is possible"},
        ),
        Role(
            "hf_config",
            "a model configuration of transformers",
            patterns=(_CLASS + r"(?:\.from_pretrained|\.for_model)?",),
            rules=_HF_CONFIG_RULES,
        ),
        Role(
            "tokenizer",
            "a tokenizer",
            ours={
                f"{_CORPUS}.{name}": f"{_CORPUS}.{name}" for name in ("open_tokenizer", "load_tokenizer")
            },
            patterns=(_CLASS + r"\.from_pretrained",),
            rules=_HF_TOKENIZER_RULES,
        ),
        Role(
            "dataset",
            "a dataset",
            ours={
                f"{_DATA}.nanogpt_dataset.NanogptDataset": f"{_DATA}.arguments.NanogptArguments",
                f"{_DATA}.megatron_dataset.MegatronPretraining": f"{_DATA}.arguments.MegatronArguments",
                f"{_DATA}.chat_dataset.ChatDataset": f"{_DATA}.arguments.ChatArguments",
                f"{_DATA}.mixture.dataset.Mixture": f"{_DATA}.arguments.MixtureArguments",
            },
        ),
        Role(
            "optimizer",
            "an optimizer",
            ours={
                "automodel_cli.train.muon.rules.muon_adamw": "automodel_cli.train.muon.arguments.MuonArguments"
            },
            patterns=(
                r"torch\.optim\.(?:[a-z]\w*\.)?[A-Z]\w*",
                r"transformers\.(?:optimization\.)?Adafactor",
            ),
            rules=(
                ClassRule("torch.optim", base=_OPTIMIZER, constructor=True),
                ClassRule("transformers.optimization", base=_OPTIMIZER, constructor=True),
            ),
            injected=("params",),
            extra={"decay_embeddings": bool},
            bounds={
                **dict.fromkeys((
                        "lr", "eps", "weight_decay", "lr_decay", "rho", "epsilon", "scalar_lr", "embed_lr",
                        "lm_head_lr", "scalar_eps", "scalar_weight_decay", "embed_weight_decay", "lm_head_weight_decay",
                        "momentum_warmup_steps",
                    ), Bounds()),
                "momentum": Bounds(),
                "orthogonalization_steps": Bounds(1, below=100),
                **dict.fromkeys(
                    (
                        "betas", "alpha", "scalar_betas", "embed_betas", "lm_head_betas", "momentum_start",
                        "normuon_beta2",
                    ),
                    Bounds(below=1),
                ),
            },
            default_target="torch.optim.AdamW",
        ),
        Role(
            "loss_fn",
            "a loss",
            ours={
                f"automodel_cli.train.{name}": f"automodel_cli.train.loss_arguments.{arguments}"
                for name, arguments in (
                    ("losses.MaskedCrossEntropy", "MaskedArguments"),
                    ("losses.ChunkedCrossEntropy", "ChunkedArguments"),
                    ("packaged_losses.CutCrossEntropy", "PackagedArguments"),
                    ("packaged_losses.LigerCrossEntropy", "PackagedArguments"),
                )
            },
            patterns=(r"torch\.nn\.(?:modules\.(?:loss\.)?)?[A-Z]\w*",),
            rules=(ClassRule("torch.nn.modules.loss", constructor=True),),
            default_target="automodel_cli.train.losses.MaskedCrossEntropy",
        ),
        Role(
            "dataloader",
            "a data loader",
            ours={f"{_DATA}.loader.TorchLoader": f"{_DATA}.arguments.TorchLoaderArguments"},
            injected=(
                "dataset", "global_batch_size", "local_batch_size", "dp_rank", "dp_world", "num_epochs",
                "any_rank",
            ),
            default_target="torch.utils.data.DataLoader",
        ),
        Role(
            "collate_fn",
            "a collate function",
            ours={f"{_DATA}.collate.default_collate": ""},
            functions=(
                "torch.utils.data.default_collate",
                "torch.utils.data.dataloader.default_collate",
                "torch.utils.data._utils.collate.default_collate",
            ),
        ),
        Role("nested", "anything"),
    )
}  # fmt: skip

_SECTION_ROLES = {
    "model": "model",
    "tokenizer": "tokenizer",
    "dataset": "dataset",
    "validation_dataset": "dataset",
    "dataloader": "dataloader",
    "validation_dataloader": "dataloader",
    "loss_fn": "loss_fn",
    "optimizer": "optimizer",
}
_ARGUMENT_ROLES = {"config": "hf_config", "tokenizer": "tokenizer"}


def role_of_section(key: str) -> Role | None:
    """The role of an open section of a file, None for closed sections."""
    name = "dataset" if key.startswith("validation_dataset_") else _SECTION_ROLES.get(key)
    return ROLES[name] if name else None


def role_of_argument(key: str) -> Role:
    """The role of a ``_target_`` that is an argument of another target."""
    if is_function_key(key):
        return ROLES["collate_fn"]
    return ROLES[_ARGUMENT_ROLES.get(key, "nested")]


def is_function_key(key: str) -> bool:
    """``collate_fn`` and its like: a plain name there stands for the function of that name."""
    return key.endswith("_fn")
