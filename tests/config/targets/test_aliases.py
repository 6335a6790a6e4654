import pytest

from automodel_cli.config.targets.aliases import (
    BY_TAIL,
    explain_unknown,
    find_alias,
    is_old_name,
    present_name,
)
from automodel_cli.config.targets.allowlist import NotAllowed, Trust, allow, translate
from automodel_cli.config.targets.roles import ROLES
from automodel_cli.config.targets.target import Target
from automodel_cli.train.muon.arguments import MuonArguments

OLD_NAMES = [
    ("model", "nemo_automodel.components.models.gpt2.build_gpt2_model", "models.gpt2.build_gpt2_model"),
    ("model", "nemo_AutoModel.components.models.gpt2.build_gpt2_model", "models.gpt2.build_gpt2_model"),
    ("model", "nemo_automodel.NeMoAutoModelForCausalLM.from_config", "models.hf.from_config"),
    (
        "model",
        "nemo_automodel.components._transformers.auto_model.NeMoAutoModelForCausalLM.from_pretrained",
        "models.hf.from_pretrained",
    ),
    (
        "dataset",
        "nemo_automodel.components.datasets.llm.nanogpt_dataset.NanogptDataset",
        "data.nanogpt_dataset.NanogptDataset",
    ),
    ("dataset", "nemo_AutoModel.x.NanogptDataset", "data.nanogpt_dataset.NanogptDataset"),
    (
        "dataset",
        "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining",
        "data.megatron_dataset.MegatronPretraining",
    ),
    (
        "loss_fn",
        "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy",
        "train.losses.MaskedCrossEntropy",
    ),
    (
        "loss_fn",
        "nemo_automodel.components.loss.chunked_ce.ChunkedCrossEntropy",
        "train.losses.ChunkedCrossEntropy",
    ),
    (
        "loss_fn",
        "nemo_automodel.components.loss.linear_ce.FusedLinearCrossEntropy",
        "train.losses.ChunkedCrossEntropy",
    ),
    (
        "collate_fn",
        "nemo_automodel.components.datasets.utils.default_collater",
        "data.collate.default_collate",
    ),
    ("dataloader", "torchdata.stateful_dataloader.StatefulDataLoader", "data.loader.TorchLoader"),
    ("dataloader", "torch.utils.data.DataLoader", "data.loader.TorchLoader"),
]


@pytest.mark.parametrize(("role", "old", "new"), OLD_NAMES)
def test_names_of_the_guides_mean_ours(role, old, new):
    allowed = allow(old, ROLES[role], Trust())
    assert allowed.origin == "ours"
    assert allowed.name == f"automodel_cli.{new}"


def test_every_alias_points_at_something_some_role_allows():
    for name, alias in BY_TAIL.items():
        assert any(alias.name in role.ours or role.matches(alias.name) for role in ROLES.values()), name


def test_an_old_name_means_something_only_in_its_role():
    with pytest.raises(NotAllowed, match="is a dataset, expected a model builder"):
        allow("nemo_automodel.x.NanogptDataset", ROLES["model"], Trust())


def test_old_names_without_a_counterpart_say_so():
    assert find_alias("nemo_automodel.components.datasets.llm.squad.SQuAD") is None
    assert is_old_name("nemo_automodel.x")
    assert not is_old_name("my_nemo_automodel.x")
    assert not is_old_name("nemo_automodel_extra.x")
    assert "did you mean NanogptDataset?" in explain_unknown("nemo_automodel.data.NanoGPTDataset")
    assert "belongs in the section distributed" in explain_unknown("nemo_automodel.x.FSDP2Manager")


def test_arguments_are_renamed_and_dropped_with_a_note():
    arguments, notes = translate(
        Target("nemo_automodel.components.loss.chunked_ce.ChunkedCrossEntropy", {"chunk_len": 32}),
        ROLES["loss_fn"],
    )
    assert arguments == {"chunk_tokens": 32}
    assert notes == []
    arguments, notes = translate(
        Target("nemo_automodel.x.FusedLinearCrossEntropy", {"logit_softcapping": 0, "ignore_index": -100}),
        ROLES["loss_fn"],
    )
    assert arguments == {"ignore_index": -100}
    assert len(notes) == 2


def test_meta_device_of_foreign_models_is_dropped_with_a_note():
    target = Target("transformers.GPT2LMHeadModel.from_config", {"is_meta_device": True, "config": {}})
    arguments, notes = translate(target, ROLES["model"])
    assert arguments == {"config": {}}
    assert "is_meta_device" in notes[0]


@pytest.mark.parametrize("name", ["adamw", "adam", "fused_adam", "flash_adamw"])
def test_short_names_of_optimizers_mean_adamw(name):
    assert allow(name, ROLES["optimizer"], Trust()).name == "torch.optim.AdamW"


@pytest.mark.parametrize("name", ["dion", "dion2", "dion.Dion"])
def test_optimizers_that_are_not_here_say_what_is(name):
    with pytest.raises(NotAllowed, match=r"not part of this version; muon_adamw and torch\.optim\.AdamW are"):
        allow(name, ROLES["optimizer"], Trust())


@pytest.mark.parametrize("name", ["dion.Muon", "muon", "dion.NorMuon", "normuon"])
def test_dions_arguments_keep_their_meaning_and_their_defaults(name):
    target = Target(name, {"mu": 0.9, "scalar_lr": 1e-3, "use_triton": True})
    arguments, notes = translate(target, ROLES["optimizer"])
    built = MuonArguments(**arguments)
    assert (built.momentum, built.scalar_lr, built.lr, built.nesterov) == (0.9, 1e-3, 5e-4, False)
    assert (built.normuon_beta2 is not None) == ("nor" in name.lower())
    assert notes == ["use_triton is ignored: torch's own matrix products are used"]
    assert MuonArguments(**translate(Target(name, {}), ROLES["optimizer"])[0]).lr_of("norm") == 5e-4


def test_muon_adamw_has_our_defaults():
    assert translate(Target("muon_adamw", {}), ROLES["optimizer"]) == ({}, [])


@pytest.mark.parametrize("below", ["fused_adam.", ""])
def test_transformer_engines_adam_is_adamw(below):
    """As NeMo AutoModel's own examples of pretraining spell it."""
    name = f"transformer_engine.pytorch.optimizers.{below}FusedAdam"
    target = Target(name, {"lr": 3e-4, "betas": [0.9, 0.95], "adam_w_mode": True, "master_weights": True})
    assert allow(name, ROLES["optimizer"], Trust()).name == present_name(name) == "torch.optim.AdamW"
    arguments, notes = translate(target, ROLES["optimizer"])
    assert arguments == {"lr": 3e-4, "betas": [0.9, 0.95]}
    assert "runs as torch's AdamW" in notes[0] and len(notes) == 3
