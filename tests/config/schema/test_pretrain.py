import pytest
from pydantic import ValidationError

from automodel_cli.config.explain import all_keys, describe_type, section_of
from automodel_cli.config.field_help import help_of
from automodel_cli.config.schema.base import reason_ignored
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig, TokenizerTrainConfig, VerifyConfig
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.results import EvaluateConfig, GenerateConfig, InspectConfig, PlotConfig
from automodel_cli.config.targets.target import Target

MODELS = [
    PretrainConfig,
    EvaluateConfig,
    InspectConfig,
    PlotConfig,
    GenerateConfig,
    PreprocessNanogptConfig,
    TokenizerTrainConfig,
    VerifyConfig,
]


def make(**sections) -> PretrainConfig:
    return PretrainConfig.model_validate({"model": {"_target_": "m.M"}, "dataset": {"_target_": "d.D"}, **sections})


def all_sections(model):
    yield model
    for field in model.model_fields.values():
        if section := section_of(field.annotation):
            yield from all_sections(section)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_section_is_closed_frozen_and_documented(model):
    for section in all_sections(model):
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"] is True
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert help_of(section, name) or reason_ignored(field), f"{section.__name__}.{name} has no docstring"
            assert describe_type(field.annotation, field.metadata) != "a value", f"{section.__name__}.{name}"


def test_defaults_of_the_guides():
    """The defaults of a YAML with only a model and a dataset."""
    cfg = make()
    assert (cfg.step_scheduler.global_batch_size, cfg.step_scheduler.local_batch_size) == (32, 1)
    assert (cfg.step_scheduler.num_epochs, cfg.step_scheduler.max_steps) == (None, None)
    assert cfg.step_scheduler.val_every_steps == "final"
    assert cfg.max_norm == 1.0
    assert cfg.lr_scheduler is None
    assert cfg.optimizer is None
    assert cfg.rng_seed == 42
    assert cfg.checkpoint.checkpoint_dir == "checkpoints/"
    assert cfg.checkpoint.save_consolidated == "final"
    assert cfg.dist_env.timeout_minutes == 30
    assert cfg.notes == []


def test_defaults_are_what_a_file_could_say():
    """Defaults skip validation for speed, so they are checked here."""
    for model in MODELS:
        for section in all_sections(model):
            optional = {
                name: field.get_default(call_default_factory=True)
                for name, field in section.model_fields.items()
                if not field.is_required()
            }
            for name, value in optional.items():
                section.__pydantic_validator__.validate_assignment(section.model_construct(), name, value)


def test_configurations_cannot_be_changed():
    cfg = make()
    with pytest.raises(ValidationError):
        cfg.seed = 3
    with pytest.raises(ValidationError):
        cfg.step_scheduler.max_steps = 3


def test_shorthands():
    assert make(clip_grad_norm=0.5).max_norm == 0.5
    assert make(clip_grad_norm=None).max_norm is None
    assert make(clip_grad_norm={"max_norm": None}).max_norm is None
    assert make(clip_grad_norm={"max_norm": 2}).max_norm == 2.0
    assert make(compile=True).compile.enabled is True
    assert make(compile=None).compile.enabled is False
    assert make(compile="auto").compile.enabled == "auto"
    assert make(fp8=True).fp8.enabled is True
    assert make(fp8=None).fp8.enabled is False
    assert make(fp8={}).fp8.enabled == "auto"
    assert make(seed=5).rng.seed == 5
    assert make(rng={"seed": 6}).rng_seed == 6
    assert make(seed=6, rng={"seed": 6}).rng_seed == 6


def test_validation_sets_by_name():
    cfg = make(
        validation_dataset={"_target_": "d.Main"},
        validation_dataset_code={"_target_": "d.Code"},
        validation_dataset_web_2={"_target_": "d.Web"},
    )
    assert {name: target.name for name, target in cfg.validation_datasets.items()} == {
        "default": "d.Main",
        "code": "d.Code",
        "web_2": "d.Web",
    }
    assert make().validation_datasets == {}
    assert list(make(validation_dataset_code={"_target_": "d.Code"}).validation_datasets) == ["code"]


def test_nested_targets_are_targets():
    cfg = make(model={"_target_": "m.M", "config": {"_target_": "c.C", "n": 1}, "many": [{"_target_": "x.X"}, 2]})
    assert cfg.model.arguments["config"] == Target("c.C", {"n": 1})
    assert cfg.model.arguments["many"] == [Target("x.X"), 2]
    assert cfg.model.to_mapping()["many"] == [{"_target_": "x.X"}, 2]


def test_sections_without_a_target_have_the_usual_one():
    assert make(optimizer={"lr": 1}).optimizer == Target("torch.optim.AdamW", {"lr": 1})
    assert make(dataloader={"num_workers": 1}).dataloader.arguments == {"num_workers": 1}


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("nemo_automodel.components.distributed.fsdp2.FSDP2Manager", "fsdp2"),
        ("nemo_AutoModel.components.distributed.ddp.DDPManager", "ddp"),
        ("nemo_automodel.components.distributed.megatron_fsdp.MegatronFSDPManager", "megatron_fsdp"),
    ],
)
def test_manager_classes_say_the_strategy(name, strategy):
    assert make(distributed={"_target_": name, "tp_size": 1}).distributed.strategy == strategy
    with pytest.raises(ValidationError, match="means strategy"):
        other = "ddp" if strategy == "fsdp2" else "fsdp2"
        make(distributed={"_target_": name, "strategy": other})


def test_older_places_of_settings():
    assert make(distributed={"dtype": "bfloat16"}).compute_precision == "bf16"
    assert make(precision="fp32", distributed={"dtype": "bfloat16"}).compute_precision == "fp32"
    assert make(distributed={"mp_policy": {"param_dtype": "torch.float16"}}).compute_precision == "fp16"
    assert make().compute_precision == "auto"
    assert make(distributed={"backend": "gloo"}).dist_backend == "gloo"
    assert make(dist_env={"backend": "nccl"}, distributed={"backend": "gloo"}).dist_backend == "nccl"
    policy = {"_target_": "torch.distributed.fsdp.MixedPrecisionPolicy", "reduce_dtype": "float32"}
    assert make(distributed={"mp_policy": policy}).distributed.mp_policy.reduce_dtype == "fp32"
    assert make(checkpoint={"restore_from": "LOWEST_VAL"}).checkpoint.restore_from == "BEST"
    assert make(checkpoint={"save_consolidated": True}).checkpoint.save_consolidated == "every"
    assert make(checkpoint={"max_recent_checkpoints": 2}).checkpoint.keep_last == 2
    assert make(wandb={"dir": "x"}).wandb.save_dir == "x"


def test_signals_by_name_number_or_not_at_all():
    def signals(value):
        return make(step_scheduler={"preemption_signal": value}).step_scheduler.preemption_signal

    assert signals("SIGTERM") == ("SIGTERM",)
    assert signals("usr1") == ("SIGUSR1",)
    assert signals([15, "SIGINT"]) == ("SIGTERM", "SIGINT")
    assert signals(None) == ()
    for bad in ("SIGNONE", 9999, "SIGKILL"):
        with pytest.raises(ValidationError):
            signals(bad)


def test_spellings_of_the_schedule():
    def style(value):
        return make(lr_scheduler={"lr_decay_style": value, "wsd_decay_steps": 10}).lr_scheduler.lr_decay_style

    assert style("wsd") == "WSD"
    assert style("inverse_square_root") == "inverse-square-root"
    assert style("Cosine") == "cosine"


def test_wandb_can_be_switched_off_in_place():
    assert list(make(wandb={"project": "p"}).active_trackers) == ["wandb"]
    assert make(wandb={"project": "p", "enable": False}).active_trackers == {}
    assert make().active_trackers == {}


@pytest.mark.parametrize(
    "recipe",
    [
        "TrainFinetuneRecipeForNextTokenPrediction",
        "nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction",
        {"_target_": "nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction"},
        "pretrain",
    ],
)
def test_the_recipe_of_old_files_is_accepted(recipe):
    assert make(recipe=recipe).recipe


def test_every_ignored_key_explains_itself_once_it_is_set():
    """Each is given a value other than its default; each must come back as a note, and no other."""
    for name, field in PretrainConfig.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            continue
        for key, inner in section.model_fields.items():
            if reason := reason_ignored(inner):
                is_switch = isinstance(inner.default, bool)
                value = not inner.default if is_switch else _some(inner.annotation)
                notes = make(**{name: {key: value}}).notes
                assert notes == [f"{name}.{key} is ignored: {reason}"]


def _some(annotation):
    text = str(annotation)
    return "bf16" if "bf16" in text else 3 if "int" in text or "float" in text else True if "bool" in text else "x"


def test_understood_keys_at_their_default_are_silent():
    assert make(rng={"ranked": True}, distributed={"use_hf_tp_plan": False}).notes == []


def test_notes_of_targets():
    cfg = make(
        model={"_target_": "transformers.GPT2LMHeadModel.from_config", "is_meta_device": True, "config": {}},
        loss_fn={"_target_": "nemo_automodel.components.loss.linear_ce.FusedLinearCrossEntropy"},
    )
    assert [note.split(" ")[0] for note in cfg.notes] == [
        "model.is_meta_device",
        "loss_fn.FusedLinearCrossEntropy",
    ]


def test_inspect_takes_numbers_for_steps():
    assert InspectConfig(step=1000).step == "1000"
    assert InspectConfig(diff=("a", "b")).diff == ("a", "b")
    with pytest.raises(ValidationError):
        InspectConfig(diff=("a",))


def test_all_keys_are_dotted_names():
    keys = all_keys(PretrainConfig)
    assert "step_scheduler.max_steps" in keys
    assert "distributed.mp_policy.param_dtype" in keys
    assert "checkpoint.max_recent_checkpoints" in keys


@pytest.mark.parametrize("key", ["cache_dir", "cache"])
def test_no_file_can_say_where_compiled_code_is_loaded_from(key):
    with pytest.raises(ValidationError, match=key):
        make(compile={key: "somewhere"})


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "comet", "trackio"])
def test_true_is_short_for_the_section_of_a_tracker(name):
    assert list(make(**{name: True}).active_trackers) == [name]
    assert make(**{name: False}).active_trackers == {}
    assert make(**{name: {"enable": False}}).active_trackers == {}
