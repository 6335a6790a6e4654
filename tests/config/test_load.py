import pytest
import yaml

from automodel_cli.config.load import load_config, to_dict, to_yaml
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.results import EvaluateConfig, GenerateConfig, InspectConfig
from automodel_cli.errors import ConfigError


def problems_of(load_text, text, *overrides, **more):
    """Lines of the error, with the folder of the file left out."""
    with pytest.raises(ConfigError) as caught:
        load_text(text, *overrides, **more)
    assert caught.value.exit_code == 2
    lines = caught.value.message.splitlines()
    lines = lines if len(lines) == 1 else lines[1:]
    return [line.strip().rpartition("/")[2] if "cfg.yaml" in line else line.strip() for line in lines]


def test_precedence_default_file_override_flag(load_text, small_yaml):
    text = small_yaml + "step_scheduler: {max_steps: 10}\n"
    assert load_text(small_yaml).step_scheduler.max_steps is None
    assert load_text(text).step_scheduler.max_steps == 10
    assert load_text(text, "--step_scheduler.max_steps", "20").step_scheduler.max_steps == 20
    both = load_text(text, "--step_scheduler.max_steps", "20", flags={"step_scheduler.max_steps": 30})
    assert both.step_scheduler.max_steps == 30
    unset = load_text(text, flags={"step_scheduler.max_steps": None})
    assert unset.step_scheduler.max_steps == 10


def test_without_a_file():
    cfg = load_config(EvaluateConfig, None, [], {"checkpoint": "run", "data": ["a.bin", "b.bin"]})
    assert (cfg.checkpoint, cfg.data, cfg.batch_size) == ("run", ("a.bin", "b.bin"), 8)
    assert load_config(InspectConfig, None, [], {"json": True}).as_json is True


def test_all_problems_are_reported_together_in_the_order_of_the_file(load_text):
    text = """\
model:
  _target_: nemo_automodel.components.models.gpt2.build_gpt2_model
  n_layers: 2
  n_embd: wide
dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  seq_len: 64
step_scheduler:
  globl_batch_size: 3
  max_steps: true
  ckpt_every_steps: never
lr_schedular: {min_lr: 0}
checkpoint: {keep_last: 0}
loss_fn: {_target_: os.system}
optimizer: {lr: 1, params: []}
"""
    assert problems_of(load_text, text, "stray", "--rng.sed", "3") == [
        "cfg.yaml:3: model.n_layers: build_gpt2_model takes no such argument, did you mean n_layer?",
        "cfg.yaml:4: model.n_embd: expected a whole number, found the text 'wide'",
        "cfg.yaml:6: dataset.file_pattern: is missing: NanogptDataset needs it",
        "cfg.yaml:9: step_scheduler.globl_batch_size: unknown key, did you mean step_scheduler.global_batch_size?",
        "cfg.yaml:10: step_scheduler.max_steps: expected a whole number from 1 up or null, found true",
        "cfg.yaml:11: step_scheduler.ckpt_every_steps: expected a whole number from 1 up, final or null, "
        "found the text 'never'",
        "cfg.yaml:12: lr_schedular: unknown key, did you mean lr_scheduler?",
        "cfg.yaml:13: checkpoint.keep_last: expected a whole number from 1 up or null, found 0",
        "cfg.yaml:14: loss_fn._target_: os.system is not a loss that a file may name; if you mean it, "
        "add --trust os.system",
        "cfg.yaml:15: optimizer.params: is supplied by the run; leave it out",
        "command line: unexpected argument 'stray'; a config key is given as section.key=value",
        "command line: rng.sed: unknown key, did you mean rng.seed?",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("max_steps: 3", "max_steps: unknown key here, did you mean step_scheduler.max_steps?"),
        ("comet: {api_key: s3cret}", "comet.api_key: is a secret, which config.yaml would keep; set COMET_API_KEY"),
        ("mlflow: {tracking_uri: 'https://me:pw@host'}", "mlflow.tracking_uri: holds a password; set MLFLOW_TRACKING"),
        (
            "mlflow: {tracking_uri: 'https://host', run_name: '${HOME}'}",
            "mlflow.run_name: takes no environment variables: write the name out",
        ),
        ("zzz: 1", "zzz: unknown key"),
        ("precision: int8", "precision: expected auto, bf16, fp16 or fp32, found the text 'int8'"),
        ("device: tpu", "device: expected auto, cpu, mps, cuda or cuda:N, found the text 'tpu'"),
        ("seed: -1", "seed: expected a whole number from 0 up or null, found -1"),
        ("clip_grad_norm: 0", "clip_grad_norm: expected a number above 0 or null, found 0"),
        (
            "clip_grad_norm: {max: 1}",
            "clip_grad_norm.max: unknown key, did you mean clip_grad_norm.max_norm?",
        ),
        (
            "compile: {enabled: maybe}",
            "compile.enabled: expected true, false or auto, found the text 'maybe'",
        ),
        ("fp8: {enabled: 8}", "fp8.enabled: expected true, false or auto, found 8"),
        (
            "fp8: {recipe_name: rowwise}",
            "fp8.recipe_name: expected tensorwise or null, found the text 'rowwise'",
        ),
        ("fp8: {filter_fqn: [head]}", "fp8.filter_fqn: unknown key, did you mean fp8.filter_fqns?"),
        ("rng: 3", "rng: expected a mapping, found 3"),
        (
            "packed_sequence: {packed_sequence_size: -8}",
            "packed_sequence.packed_sequence_size: expected a whole number from 0 up",
        ),
        (
            "packed_sequence: {packed_sequence_size: 8, max_packs: 2}",
            "packed_sequence: max_packs does not go with packed_sequence_size: set step_scheduler.max_steps",
        ),
        (
            "packed_sequence: {packed_sequence_size: 8, prepacked: true}",
            "packed_sequence: prepacked: true means rows that are packed already",
        ),
        ("optimizer: adam", "optimizer: expected a mapping with _target_, found the text 'adam'"),
        ("loss_fn: {_target_: [a]}", "loss_fn: _target_ must be a name, found a list"),
        ("validation_dataset_code: {seq_len: 1}", "validation_dataset_code: a _target_ is needed"),
        ("validation_dataset_code: 3", "validation_dataset_code: expected a mapping with _target_, found 3"),
        (
            "checkpoint: {keep_last: 1, max_recent_checkpoints: 2}",
            "checkpoint: keep_last and max_recent_checkpoints",
        ),
        ("rng: {seed: 1}\nseed: 2", "seed is 2 and rng.seed is 1"),
        ("rng: {_target_: os.system}", "rng: this section is not built from a _target_"),
        ("distributed: {_target_: a.DDPManager}", "distributed: this section is not built from a _target_"),
        (
            "recipe: KnowledgeDistillation",
            "recipe: expected TrainFinetuneRecipeForNextTokenPrediction, found the text 'KnowledgeDistillation'",
        ),
        (
            "step_scheduler: {preemption_signal: SIGNONE}",
            "step_scheduler.preemption_signal: there is no signal",
        ),
        ("lr_scheduler: {lr_decay_style: WSD}", "lr_scheduler: lr_decay_style WSD needs wsd_decay_steps"),
        (
            "param_group_overrides: [{pattern: x, lr_mul: 2}]",
            "param_group_overrides.0.lr_mul: unknown key, did you",
        ),
    ],
)
def test_one_wrong_line_gives_one_problem_with_its_place(load_text, small_yaml, line, expected):
    found = problems_of(load_text, small_yaml + line + "\n")
    assert len(found) == 1
    place = small_yaml.count("\n") + 1
    if "\n" not in line:
        assert found[0].startswith((f"cfg.yaml:{place}: ", "cfg.yaml:1: "))
    assert expected in found[0]


def test_missing_sections_are_named_with_their_help(load_text):
    found = problems_of(load_text, "seed: 1\n")
    assert [line.split(": ")[1] for line in found] == ["model", "dataset"]
    assert "is missing: What to train on" in found[1]


def test_text_fields_keep_the_text_that_was_written(load_text, small_yaml):
    cfg = load_text(small_yaml + "wandb: {name: 0042, project: 1e3, notes: 3.10}\n", "--wandb.group", "007")
    assert (cfg.wandb.name, cfg.wandb.project, cfg.wandb.notes, cfg.wandb.group) == (
        "0042",
        "1e3",
        "3.10",
        "007",
    )


def test_truth_values_are_no_numbers_and_no_names(load_text, small_yaml):
    assert problems_of(load_text, small_yaml + "wandb: {name: true}\n")[0].endswith("found true")
    assert problems_of(load_text, small_yaml + "dist_env: {timeout_minutes: true}\n")[0].endswith("found true")


# ------------------------------------------------------------------------------------------ back to YAML

FULL = """seed: 7
precision: bf16
model:
  _target_: transformers.AutoModelForCausalLM.from_config
  config:
    _target_: transformers.GPT2Config
    n_layer: 2
tokenizer: gpt2
dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: ["a.bin", "b*.bin", "3e-4", "null", "yes", "${literal}x"]
  seq_len: 64
validation_dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: v.bin
  seq_len: 64
validation_dataset_code:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: c.bin
  seq_len: 64
optimizer:
  lr: 3e-4
  betas: [0.9, 0.95]
param_group_overrides:
  - {pattern: "bias$", wd_mult: 0}
clip_grad_norm: null
compile: false
lr_scheduler: {min_lr: 1e-5}
step_scheduler: {max_steps: 10, ckpt_every_steps: final, loss_average_window_steps: 20}
distributed: {_target_: nemo_automodel.components.distributed.ddp.DDPManager, world_size: 1}
checkpoint: {max_recent_checkpoints: 3, save_consolidated: true}
wandb: {project: "007", tags: [a, "1"], notes: "colon: and # hash"}
""".replace("${literal}", "$${literal}")


def test_the_effective_yaml_reads_back_to_an_equal_configuration(load_text):
    cfg = load_text(FULL)
    again = load_text(to_yaml(cfg))
    assert again == cfg
    assert to_yaml(again) == to_yaml(cfg)
    assert cfg.dataset.arguments["file_pattern"][-1] == "${literal}x"


def test_the_effective_yaml_carries_overrides(load_text, small_yaml):
    text = to_yaml(load_text(small_yaml, "--model.n_layer", "5", "--clip_grad_norm", "null"))
    assert load_text(text).model.arguments["n_layer"] == 5
    assert load_text(text).max_norm is None


def test_other_yaml_readers_see_the_same_values(load_text):
    """PyYAML follows YAML 1.1: what it would misread is quoted."""
    cfg = load_text(FULL)
    seen = yaml.safe_load(to_yaml(cfg))
    assert seen["dataset"]["file_pattern"][2:5] == ["3e-4", "null", "yes"]
    assert seen["wandb"]["project"] == "007"
    assert seen["optimizer"]["lr"] == 3e-4


def test_keys_for_old_files_appear_only_where_they_were_given(load_text, small_yaml):
    assert "world_size" not in to_yaml(load_text(small_yaml))
    assert to_dict(load_text(FULL))["distributed"]["world_size"] == 1


def test_placeholders_are_kept_and_secrets_never_written(load_text, small_yaml, monkeypatch):
    monkeypatch.setenv("AM_ENTITY", "top-secret-entity")
    monkeypatch.setenv("AM_CLIP", "0.5")
    monkeypatch.setenv("AM_HF", "hf_verysecret")
    text = small_yaml.replace("build_gpt2_model", "build_gpt2_model  # ours") + (
        "wandb: {entity: '${AM_ENTITY}', dir: '$AM_ENTITY/x'}\nclip_grad_norm: ${AM_CLIP}\n"
        "tokenizer: {_target_: transformers.AutoTokenizer.from_pretrained,"
        " pretrained_model_name_or_path: x, token: hf_alsosecret, cache_dir: '${AM_HF}'}\n"
    )
    cfg = load_text(text)
    assert (cfg.wandb.entity, cfg.max_norm, cfg.wandb.save_dir) == (
        "top-secret-entity",
        0.5,
        "top-secret-entity/x",
    )
    written = to_yaml(cfg)
    assert "secret" not in written
    assert "${AM_ENTITY}" in written
    assert "$AM_ENTITY/x" in written
    assert "clip_grad_norm: ${AM_CLIP}" in written
    assert "token: '***'" in written
    monkeypatch.setenv("AM_CLIP", "0.25")
    assert load_text(written).max_norm == 0.25


def test_a_quoted_placeholder_stays_text(load_text, small_yaml, monkeypatch):
    monkeypatch.setenv("AM_ID", "123")
    cfg = load_text(small_yaml + "model_x: 1\n".replace("model_x: 1\n", "wandb: {id: '${AM_ID}'}\n"))
    assert cfg.wandb.id == "123"
    assert load_text(to_yaml(cfg)).wandb.id == "123"


def test_secrets_are_not_shown_in_errors(load_text, small_yaml, monkeypatch):
    monkeypatch.setenv("AM_SECRET", "hush")
    found = problems_of(load_text, small_yaml + "step_scheduler: {max_steps: '${AM_SECRET}'}\n")
    assert "hush" not in found[0]
    assert "${AM_SECRET}" in found[0]


def test_a_configuration_from_python_prints_too():
    cfg = PretrainConfig.model_validate(
        {"model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model"}, "dataset": {"_target_": "x.Y"}}
    )
    assert "build_gpt2_model" in to_yaml(cfg)


def test_all_that_is_wrong_is_one_list(tmp_path):
    path = tmp_path / "cfg.yaml"
    path.write_text(
        "model: {_target_: transformers.GPT2LMHeadModel.from_config,\n"
        "  config: {_target_: transformers.GPT2Config, n_layr: 1}}\n"
        "dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x, seq_len: many}\n"
        "optimizer: {_target_: torch.optim.SGD, lr: 0.1,\n  momentums: 1}\n"
        "loss_fn: {_target_: torch.nn.CrossEntropyLoss, reductions: sum}\n"
        "step_scheduler: {max_stepz: 1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path, ["--seed", "x"])
    lines = caught.value.message.splitlines()
    assert lines[0] == "6 problems:"
    places = [line.strip().removeprefix(f"{tmp_path}/").partition(": ")[::2] for line in lines[1:]]
    assert [(place, text.partition(":")[0]) for place, text in places] == [
        ("cfg.yaml:2", "model.config.n_layr"), ("cfg.yaml:3", "dataset.seq_len"), ("cfg.yaml:5", "optimizer.momentums"),
        ("cfg.yaml:6", "loss_fn.reductions"), ("cfg.yaml:7", "step_scheduler.max_stepz"), ("command line", "seed"),
    ]  # fmt: skip


def test_a_word_that_yaml_takes_for_null_stays_a_word_where_it_is_one(load_text, small_yaml):
    cfg = load_text(small_yaml + "distributed: {strategy: none}\n", "--init_from", "none")
    assert (cfg.distributed.strategy, cfg.init_from) == ("none", None)


@pytest.mark.parametrize("text", ["none", "'none'"])
def test_none_is_a_word_where_a_key_has_it(text, tmp_path, load_text, small_yaml):
    """``eot: none`` was read as null, which means prepend."""
    (tmp_path / "n.yaml").write_text(f"eot: {text}\noutput_dir: none\n")
    cfg = load_config(PreprocessNanogptConfig, tmp_path / "n.yaml")
    assert (cfg.eot, cfg.output_dir) == ("none", None)
    assert load_text(small_yaml + f"distributed: {{strategy: {text}}}\n").distributed.strategy == "none"
    assert load_text(small_yaml, "--distributed.strategy", "none").distributed.strategy == "none"
    assert load_config(PreprocessNanogptConfig, flags={"eot": "none"}).eot == "none"


def test_flags_are_read_as_a_file_is_and_texts_stand_as_they_are():
    given = {
        "checkpoint": "007",
        "prompt": "[a: b]",
        "top_k": "null",
        "temperature": "1e-1",
        "stop": ["null", "1"],
    }
    cfg = load_config(GenerateConfig, flags=given)
    assert (cfg.checkpoint, cfg.prompt, cfg.top_k, cfg.temperature) == ("007", "[a: b]", None, 0.1)
    assert cfg.stop == ("null", "1")
