import json
import math
import sys
from typing import Any

import pytest
import torch
import transformers
import yaml

from automodel_cli.config.explain import describe_type
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets import instantiate as instantiate_module
from automodel_cli.config.targets.instantiate import (
    built_arguments,
    check_foreign,
    check_target,
    instantiate,
)
from automodel_cli.config.targets.signatures import from_callable
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import ConfigError, DataError

TINY_GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 32, "bos_token_id": 0,
             "eos_token_id": 0}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def target(mapping) -> Target:
    return Target.parse(mapping)


def hf_config(**more) -> dict:
    return {"_target_": "transformers.GPT2Config", **TINY_GPT2, **more}


# ------------------------------------------------------------------------------------------------ ours


def test_our_own_targets_are_built():
    model = instantiate(
        target({"_target_": "nemo_automodel.components.models.gpt2.build_gpt2_model", "n_layer": 1, "n_head": 1,
                "n_embd": 8, "n_positions": 8, "vocab_size": 10}),
        "model",
    )  # fmt: skip
    assert isinstance(model, torch.nn.Module)
    loss = instantiate(target({"_target_": "automodel_cli.train.losses.MaskedCrossEntropy"}), "loss_fn")
    assert type(loss).__module__ == "automodel_cli.train.losses"


def test_injected_values_fill_in_where_the_file_says_nothing(here):
    (here / "mine.py").write_text("class D:\n    def __init__(self, seq_len, seed=0): self.got = (seq_len, seed)\n")
    named = {"_target_": "mine.D", "seq_len": 4}
    build = {"inject": {"seed": 7, "unknown": 1}, "trust": ["mine"]}
    assert instantiate(target(named), "dataset", **build).got == (4, 7)
    assert instantiate(target({**named, "seed": 9}), "dataset", **build).got == (4, 9)


def test_supplied_arguments_always_come_from_the_run():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    optimizer = instantiate(target({"_target_": "torch.optim.SGD", "lr": 0.5}), "optimizer", inject={"params": weights})
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["params"] == weights
    with pytest.raises(ConfigError, match="params: is supplied by the run"):
        instantiate(target({"_target_": "torch.optim.SGD", "params": []}), "optimizer", inject={"params": weights})


def test_an_error_of_the_callable_names_place_target_and_arguments():
    wrong = Target("torch.optim.SGD", {"lr": 1.0, "nesterov": True}, where="cfg.yaml:7")
    with pytest.raises(ConfigError) as caught:
        instantiate(wrong, "optimizer", inject={"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert caught.value.message.startswith("cfg.yaml:7: torch.optim.SGD failed: ValueError: Nesterov momentum requires")
    assert "lr=1.0" in caught.value.hint


def test_secrets_are_blanked_in_errors(here):
    (here / "mine.py").write_text("def f(token, bos_token): raise RuntimeError('no')\n")
    named = {"_target_": "mine.f", "token": "hf_hush", "bos_token": 5}
    with pytest.raises(ConfigError) as caught:
        instantiate(target(named), "dataset", trust=["mine"])
    assert "hf_hush" not in str(caught.value)
    assert "bos_token=5" in caught.value.hint


def test_our_own_errors_pass_unchanged(here):
    with pytest.raises(DataError):
        instantiate(
            target(
                {
                    "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
                    "file_pattern": str(here / "absent.bin"),
                    "seq_len": 4,
                }
            ),
            "dataset",
        )


# --------------------------------------------------------------------------------------------- foreign


@pytest.mark.parametrize(
    "name",
    [
        "transformers.GPT2LMHeadModel.from_config",
        "transformers.AutoModelForCausalLM.from_config",
        "transformers.GPT2LMHeadModel",
        "transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel.from_config",
    ],
)
def test_the_ways_to_a_model_of_transformers(name):
    model = instantiate(target({"_target_": name, "config": hf_config()}), "model")
    assert isinstance(model, transformers.GPT2LMHeadModel)
    assert model.config.n_layer == 2


def test_types_of_numbers_have_many_names():
    for written in ("bfloat16", "torch.bfloat16", "bf16"):
        named = {
            "_target_": "transformers.GPT2LMHeadModel.from_config",
            "config": hf_config(),
            "torch_dtype": written,
        }
        assert instantiate(target(named), "model").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="is not a dtype"):
        instantiate(target({**named, "torch_dtype": "system"}), "model")


@pytest.mark.parametrize("folder_of", ["AutoConfig", "GPT2Config"])
def test_a_configuration_from_a_local_folder_with_overrides(here, folder_of):
    transformers.GPT2Config(**TINY_GPT2).save_pretrained(here / "hf")
    named = {
        "_target_": "transformers.AutoModelForCausalLM.from_config",
        "config": {
            "_target_": f"transformers.{folder_of}.from_pretrained",
            "pretrained_model_name_or_path": "hf",
            "n_layer": 1,
            "resid_pdrop": 0.0,
        },
    }
    model = instantiate(target(named), "model")
    assert (model.config.n_layer, model.config.n_embd, model.config.resid_pdrop) == (1, 8, 0.0)


def test_what_cannot_be_loaded_says_how_to_do_without_the_hub(here):
    named = {
        "_target_": "transformers.AutoConfig.from_pretrained",
        "pretrained_model_name_or_path": "./no/such/folder",
    }
    with pytest.raises(ConfigError) as caught:
        instantiate(target(named), "hf_config", key="model.config")
    assert len(caught.value.message.splitlines()) == 1
    assert "--model.config.pretrained_model_name_or_path FOLDER" in caught.value.hint


def test_an_override_the_configuration_does_not_know_is_an_error(here):
    """transformers drops it and trains another model than the one that was asked for."""
    transformers.GPT2Config(**TINY_GPT2).save_pretrained(here / "hf")
    dropped = transformers.AutoConfig.from_pretrained("hf", n_layers=1)
    assert dropped.n_layer == 2
    named = {"_target_": "transformers.AutoConfig.from_pretrained", "pretrained_model_name_or_path": "hf"}
    with pytest.raises(ConfigError, match=r"n_layers: GPT2Config has no such key, did you mean n_layer\?"):
        instantiate(target({**named, "n_layers": 1}), "hf_config")


def test_arguments_of_foreign_targets_are_checked_before_anything_is_built():
    def problems(mapping, role):
        return [f"{problem.key}: {problem.text}" for problem in check_target(target(mapping), role).problems]

    found = problems({"_target_": "torch.optim.AdamW", "lr": "fast", "beta": [1, 2]}, "optimizer")
    assert any(line.startswith("optimizer.lr: expected a number") for line in found)
    assert any("did you mean betas?" in line for line in found)
    nested = {"_target_": "transformers.GPT2LMHeadModel.from_config", "config": hf_config(n_layers=3), "x": 1}
    found = problems(nested, "model")
    assert any(line.startswith("model.config.n_layers: ") and "did you mean n_layer?" in line for line in found)
    assert any(line.startswith("model.x: ") for line in found)
    assert problems({"_target_": "transformers.GPT2LMHeadModel.from_config"}, "model") == [
        "model.config: is missing: transformers.GPT2LMHeadModel.from_config needs it"
    ]


@pytest.mark.parametrize(
    ("role", "name", "expected"),
    [
        ("optimizer", "torch.optim.AdamWW", "torch.optim has no AdamWW, did you mean AdamW?"),
        ("optimizer", "torch.optim.lr_scheduler.LambdaLR", "is not an optimizer"),
        ("optimizer", "torch.optim.adamw.Tensor", "is not an optimizer"),
        ("loss_fn", "torch.nn.Linear", "is not a loss"),
        ("loss_fn", "torch.nn.Module", "is not a loss"),
        ("model", "transformers.GPT2Config", "is not a model builder"),
        ("model", "transformers.Trainer", "is not a model builder"),
        ("model", "transformers.NoSuchModel.from_config", "has no NoSuchModel"),
        ("hf_config", "transformers.GPT2LMHeadModel", "is not a model configuration"),
        ("tokenizer", "transformers.GPT2Config.from_pretrained", "is not a tokenizer"),
    ],
)
def test_the_object_has_to_be_what_its_place_takes(role, name, expected):
    problems = check_target(target({"_target_": name}), role).problems
    assert len(problems) == 1
    assert expected in problems[0].text
    first_phase = [problem.text for problem in check_target(target({"_target_": name}), role, imports=False).problems]
    assert not any(expected in text for text in first_phase)  # it imports nothing, so it cannot know yet


def test_collate_functions_are_resolved_by_name_and_not_called(here):
    named = {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
        "num_workers": 2,
        "group_by_length": True,
    }
    for written in ("torch.utils.data.default_collate", {"_target_": "torch.utils.data.default_collate"}):
        arguments = built_arguments(target({**named, "collate_fn": written}), "dataloader")
        assert arguments == {"num_workers": 2, "collate_fn": torch.utils.data.default_collate}
    (here / "mine.py").write_text("def collate(items, pad=0): return (items, pad)\n")
    own = {**named, "collate_fn": {"_target_": "mine.collate", "pad": 5}}
    assert built_arguments(target(own), "dataloader", trust=["mine"])["collate_fn"]([1]) == ([1], 5)
    with pytest.raises(ConfigError, match="add --trust mine"):
        built_arguments(target(own), "dataloader")


# ------------------------------------------------------------------------------------------ user's code


def test_a_trusted_module_of_the_current_folder(here):
    (here / "my_models.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self, width: int): super().__init__()\n"
    )
    named = {"_target_": "my_models.Net", "width": 3}
    model = instantiate(target(named), "model", trust=["my_models"])
    assert type(model).__name__ == "Net"
    assert str(here) not in sys.path[:1]
    assert type(instantiate(target(named), "model", trust=["my_models.Net"])) is type(model)


def test_a_module_that_is_not_trusted_is_not_even_imported(here):
    (here / "my_models.py").write_text("raise SystemExit('ran')\n")
    named = target({"_target_": "my_models.Net"})
    assert "add --trust my_models" in check_target(named, "model").problems[0].text
    with pytest.raises(ConfigError, match="add --trust my_models"):
        instantiate(named, "model")
    assert "my_models" not in sys.modules


def test_a_trusted_file_is_executed_once(here):
    (here / "net.py").write_text(
        "from pathlib import Path\n"
        "log = Path('log.txt'); log.write_text(log.read_text() + 'x' if log.exists() else 'x')\n"
        "class Net: ...\n"
        "class Data: ...\n"
    )
    first = instantiate(target({"_target_": "net.py:Net"}), "model", trust=["net.py"])
    second = instantiate(target({"_target_": f"{here}/net.py:Net"}), "model", trust=["net.py"])
    other = instantiate(target({"_target_": "./net.py:Data"}), "dataset", trust=["net.py"])
    assert type(first) is type(second)
    assert type(first).__module__ == type(other).__module__
    assert (here / "log.txt").read_text() == "x"


def test_arguments_of_a_trusted_file_are_checked_without_running_it(here):
    (here / "net.py").write_text("raise SystemExit('ran')\ndef build(width: int): ...\n")
    problems = check_target(
        target({"_target_": "net.py:build", "widthh": 3}), "model", trust=["net.py"], imports=False
    ).problems
    assert [problem.text for problem in problems] == [
        "build takes no such argument, did you mean width?",
        "is missing: build needs it",
    ]


def test_the_inner_import_error_is_shown(here):
    (here / "broken.py").write_text("import os\nimport no_such_dependency\n")
    with pytest.raises(ConfigError, match=r"ModuleNotFoundError: No module named 'no_such_dependency'") as caught:
        instantiate(target({"_target_": "broken.Net"}), "model", trust=["broken"])
    assert "broken.py, line 2" in caught.value.message
    with pytest.raises(ConfigError, match=r"failed while it was loaded: .*no_such_dependency.*broken\.py, line 2"):
        instantiate(target({"_target_": "broken.py:Net"}), "model", trust=["broken.py"])
    (here / "buggy.py").write_text("x = 1 / 0\n")
    with pytest.raises(ConfigError, match=r"ZeroDivisionError: division by zero \(buggy\.py, line 1\)"):
        instantiate(target({"_target_": "buggy.Net"}), "model", trust=["buggy"])


def test_names_that_are_not_there(here):
    (here / "mine.py").write_text("class Network: ...\nvalue = 3\n")
    with pytest.raises(ConfigError, match="mine has no Netwerk, did you mean Network"):
        instantiate(target({"_target_": "mine.Netwerk"}), "model", trust=["mine"])
    with pytest.raises(ConfigError, match="there is no module absent_module"):
        instantiate(target({"_target_": "absent_module.Net"}), "model", trust=["absent_module"])


def test_trust_in_a_module_is_none_in_what_it_imports(here):
    (here / "mine.py").write_text(
        "import os\nfrom os import system\nfrom functools import partial\np = partial(system)\n"
    )
    for name in ("mine.os.system", "mine.system", "mine.p", "mine.os.path.join"):
        with pytest.raises(ConfigError, match="is really"):
            instantiate(target({"_target_": name}), "model", trust=["mine"])


def test_a_package_may_offer_what_its_modules_define(here):
    (here / "pkg").mkdir()
    (here / "pkg/__init__.py").write_text("from pkg.inner import Net\n")
    (here / "pkg/inner.py").write_text("class Net:\n    @classmethod\n    def make(cls): return cls()\n")
    assert type(instantiate(target({"_target_": "pkg.Net"}), "model", trust=["pkg"])).__name__ == "Net"
    assert type(instantiate(target({"_target_": "pkg.inner.Net.make"}), "model", trust=["pkg"])).__name__ == "Net"


def test_nested_targets_are_built_first_in_lists_too(here):
    (here / "mine.py").write_text(
        "class Leaf:\n    def __init__(self, n): self.n = n\n"
        "class Tree:\n    def __init__(self, leaves, by_name):\n"
        "        self.sizes = [leaf.n for leaf in leaves], by_name['a'].n\n"
    )
    leaf = {"_target_": "mine.Leaf", "n": 1}
    named = {"_target_": "mine.Tree", "leaves": [leaf, {**leaf, "n": 2}], "by_name": {"a": {**leaf, "n": 3}}}
    assert instantiate(target(named), "dataset", trust=["mine"]).sizes == ([1, 2], 3)


def test_check_foreign_reports_all_sections_at_once(load_text, small_yaml):
    cfg = load_text(
        small_yaml
        + "optimizer: {_target_: torch.optim.AdamWW}\n"
        + "loss_fn: {_target_: torch.nn.CrossEntropyLoss, reductoin: sum}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_foreign(cfg)
    assert "2 problems" in caught.value.message
    assert "AdamWW" in caught.value.message
    assert "did you mean reduction?" in caught.value.message


def test_a_folder_with_code_of_its_own_is_refused_without_asking(here):
    """transformers would ask on the terminal; we answer no, and with trust we answer yes."""
    folder = here / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "evil_type", "auto_map": {"AutoConfig": "evil.EvilConfig"}})
    )
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(here / 'canary')!r}).touch()\n"
        "from transformers import PretrainedConfig\nclass EvilConfig(PretrainedConfig): model_type = 'evil_type'\n"
    )
    named = {
        "_target_": "transformers.AutoConfig.from_pretrained",
        "pretrained_model_name_or_path": str(folder),
    }
    with pytest.raises(ConfigError):
        instantiate(target(named), "hf_config")
    with pytest.raises(ConfigError, match="would run code that comes with"):
        instantiate(target({**named, "trust_remote_code": True}), "hf_config")
    assert not (here / "canary").exists()
    instantiate(target({**named, "trust_remote_code": True}), "hf_config", trust=[str(folder)])
    assert (here / "canary").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lr": -1}, "optimizer.lr: expected a number from 0 up, found -1"),
        ({"lr": math.nan}, "optimizer.lr: expected a number"),
        ({"lr": "nan"}, "optimizer.lr: expected a number"),
        ({"lr": math.inf}, "optimizer.lr: expected a number"),
        ({"betas": [0.9, 1.0]}, "optimizer.betas: expected a number from 0 up, below 1, found 0.9 and 1.0"),
        ({"betas": [-0.1, 0.9]}, "optimizer.betas: expected a number from 0 up, below 1"),
        ({"eps": -1e-8}, "optimizer.eps: expected a number from 0 up"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay: expected a number from 0 up"),
        ({"amsgrad": "maybe"}, "optimizer.amsgrad: expected true or false"),
        ({"decay_embeddings": 7}, "optimizer.decay_embeddings: expected true or false"),
    ],
)
def test_what_no_optimizer_takes_is_an_error_with_its_place(arguments, says):
    key = next(iter(arguments))
    named = Target("torch.optim.AdamW", arguments, where="cfg.yaml:4", key_where={key: "cfg.yaml:5"})
    [problem] = check_target(named, "optimizer").problems
    assert str(problem).startswith(f"cfg.yaml:5: {says}")


MUON, GPT = ["optimizer._target_=muon_adamw"], ["model={_target_: automodel_cli.models.gpt.build_gpt_model}"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([*GPT, "model.activation=tanh", "model.softcap=-1"], "activation is 'tanh', .*; softcap is -1.0"),
        ([*GPT, "model.num_hidden_layers=100000000"], "num_hidden_layers is 100,000,000, expected at most 10,000"),
        (["model.n_head=5", "model.n_embd=0"], "n_embd is 0"),
        (["loss_fn.z_loss_weight=-1"], "z_loss_weight is -1.0"),
        (["loss_fn.ignore_index=0"], "ignore_index is 0, but data mark"),
        ([*MUON, "optimizer.momentum=1"], "optimizer: muon_adamw: momentum is 1, expected 0 <= momentum < 1"),
        ([*MUON, "optimizer.lr=0"], "lr is 0 and others are not"),
        ([*MUON, "optimizer.scalar_betas=[0.9, 2]"], "scalar_betas: expected a number from 0 up, .* found 0.9 and 2.0"),
        ([*MUON, "optimizer.epsilon=0", "optimizer.scalar_eps=0"], "epsilon is 0, .*; scalar_eps is 0"),
        (["param_group_overrides=[{pattern: '('}]"], "pattern: expected a regular expression"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_configuration(load_text, small_yaml, overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_text(small_yaml, *overrides)


def test_words_for_no_are_false_to_every_callable(here):
    sections = {
        "optimizer": {"_target_": "torch.optim.AdamW", "amsgrad": "no", "maximize": "off", "fused": "off"},
        "loss_fn": {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": "0.1"},
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", "n_layer": 1, "bias": "no"},
        "dataset": {
            "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
            "file_pattern": "x.bin",
            "seq_len": 8,
            "shuffle_files": "off",
        },
    }
    (here / "cfg.yaml").write_text(yaml.safe_dump(sections))
    cfg = load_config(PretrainConfig, here / "cfg.yaml")
    check_foreign(cfg)
    switches = ("amsgrad", "maximize", "fused")
    assert [cfg.optimizer.arguments[name] for name in switches] == [False, False, False]
    assert cfg.dataset.arguments["shuffle_files"] is False
    config = instantiate(target({"_target_": "transformers.GPT2Config", **TINY_GPT2, "use_cache": "no"}), "hf_config")
    assert config.use_cache is False


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "Adadelta", "NAdam", "Rprop"])
def test_what_is_known_of_an_optimizer_without_torch_is_what_torch_says(kind):
    known = instantiate_module._optimizer_signature(f"torch.optim.{kind}").parameters
    real = from_callable(getattr(torch.optim, kind)).parameters
    assert known.keys() == real.keys()
    for name, parameter in known.items():
        if parameter.annotation is not Any:
            assert describe_type(parameter.annotation) == describe_type(real[name].annotation), name
    assert describe_type(known["lr"].annotation) == "a number"
