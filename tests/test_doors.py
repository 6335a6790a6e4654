"""The table of arguments that open doors: against everything that configurations admit, as it is installed here."""

import ast
import inspect
import json
from pathlib import Path

import pytest
import torch
import transformers

from automodel_cli import doors, transformers_calls
from automodel_cli.config.targets import signatures
from automodel_cli.config.targets.instantiate import check_target, instantiate
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import ConfigError
from automodel_cli.transformers_calls import (
    HUB_ARGUMENTS,
    MODEL_ARGUMENTS,
    SOURCE,
    TOKENIZER_ARGUMENTS,
    shut,
)

# A name with one of these words may decide whether code runs: such an argument is a door, or is listed with its reason.
SUSPICIOUS = frozenset(
    (
        *("trust", "remote", "code", "pickle", "weights", "safetensors", "kernel", "kernels", "tf", "flax"),
        *(
            "custom",
            "auto",
            "map",
            "implementation",
            "exec",
            "eval",
            "plugin",
            "pretrained",
            "module",
            "hook",
        ),
        *("pipelines", "backbone", "timm", "checkpoint", "adapter", "fn", "script", "class", "local"),
    )
)
HARMLESS = {
    "pretrained_model_name_or_path": "the source itself, which is looked at first",
    "_from_auto": "not passed on",
    "_from_pipeline": "not passed on",
    "adapter_kwargs": "not passed on",
    "adapter_name": "not passed on",
    "tqdm_class": "not passed on",
    "device_map": "names of devices",
    "collate_fn": "a name that is allowed like every other",
    "worker_init_fn": "a name that is allowed like every other",
    "adjust_lr_fn": "one of a few texts",
    "line_search_fn": "one of a few texts",
    "expert_selection_fn": "one of a few texts",
    "chunkwise_kernel": "one of a few texts",
    "sequence_kernel": "one of a few texts",
    "step_kernel": "one of a few texts",
    "autocast_kernel_dtype": "one of a few texts",
    "use_mamba_kernels": "kernels of fixed names, of a package that the user installed",
    "vocabulary_map": "ids",
    "num_local_experts": "a number", "adapter_rank": "a number", "adapter_reduction_factor": "a number",
    "adapter_reuse_layer_norm": "a shape", "adapter_layer_norm": "a shape",
    "backbone_hidden_size": "a number", "block_auto_adjust_ff_dim": "a shape",
    "conv_kernel": "a number", "conv_kernel_size": "a number", "short_conv_kernel_size": "a number",
    "ple_conv_kernel_size": "a number", "linear_conv_kernel_dim": "a number", "index_local_blocks": "a number",
    "ln_before_adapter": "a shape", "local_attention": "a number", "local_attention_probs_dropout_prob": "a number",
    "local_attention_window_len": "a number", "local_attn_chunk_length": "a number", "local_layer_ids": "numbers",
    "local_num_chunks_after": "a number", "local_num_chunks_before": "a number", "max_eval": "a number",
    "mtp_local_layer_ids": "numbers", "scale_attn_weights": "a shape", "use_mems_eval": "a shape",
    "use_shared_attention_adapter": "a shape",
}  # fmt: skip
PUBLIC = {
    "AutoModelForCausalLM.from_pretrained": transformers.AutoModelForCausalLM.from_pretrained,
    "AutoModelForCausalLM.from_config": transformers.AutoModelForCausalLM.from_config,
    "PreTrainedModel.from_pretrained": transformers.PreTrainedModel.from_pretrained,
    "PreTrainedModel._from_config": transformers.PreTrainedModel._from_config,
    "AutoConfig.from_pretrained": transformers.AutoConfig.from_pretrained,
    "PreTrainedConfig.from_pretrained": transformers.PreTrainedConfig.from_pretrained,
    "PreTrainedConfig.get_config_dict": transformers.PreTrainedConfig.get_config_dict,
    "PreTrainedConfig._get_config_dict": transformers.PreTrainedConfig._get_config_dict,
    "AutoTokenizer.from_pretrained": transformers.AutoTokenizer.from_pretrained,
    "PreTrainedTokenizerBase.from_pretrained": transformers.PreTrainedTokenizerBase.from_pretrained,
}


def keywords_of(function) -> set[str]:
    """Parameters, and names that the source looks up in its ``kwargs``."""
    names = set(inspect.signature(function).parameters)
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            looks_up = node.func.attr in ("pop", "get", "setdefault") and "kwargs" in ast.unparse(node.func.value)
            if looks_up and isinstance(node.args[0], ast.Constant):
                names.add(node.args[0].value)
    return names


def allowed_names() -> dict[str, set[str]]:
    """Every keyword of everything foreign that a configuration may name, by callable."""
    found = {name: keywords_of(function) for name, function in PUBLIC.items()}
    for owner in (torch.optim, torch.nn.modules.loss):
        for name in dir(owner):
            kind = getattr(owner, name)
            if isinstance(kind, type) and not name.startswith("_") and (s := signatures.from_callable(kind)):
                found[name] = set(s.parameters)
    found["DataLoader"] = set(signatures.from_callable(torch.utils.data.DataLoader).parameters)
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    for model_type in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found[model_type] = set(signatures.from_callable(mapping[model_type]).parameters)
    return found


def test_every_suspicious_argument_is_a_door():
    """A new version of a library that brings another such argument fails here; until then it is not passed on."""
    found = allowed_names()
    loose = {
        name
        for names in found.values()
        for name in names
        if SUSPICIOUS.intersection(name.split("_")) and name not in doors.DOORS
    }
    assert loose - set(HARMLESS) == set()  # a model type less, in another version, is no harm
    assert len(found) > 150


@pytest.mark.parametrize("name", ["trust_remote_code", "weights_only", "use_safetensors", "local_files_only"])
@pytest.mark.parametrize("value", ["no", "off", "false", "true", "0", " ", "", [], {}, 0, 1, 0.0, -0.0, None])
def test_what_is_no_boolean_is_none(name, value):
    assert [path for path, _, _ in doors.mistyped({"deep": [{name: value}]})] == [("deep", "0", name)]


def test_the_values_that_are_given_where_a_file_says_nothing(tmp_path):
    folder, load = str(tmp_path), transformers.PreTrainedModel.from_pretrained
    given = shut(transformers.AutoModelForCausalLM.from_pretrained, folder, load)
    assert given["trust_remote_code"] is False and given["local_files_only"] is True
    assert given["weights_only"] is True and given["use_safetensors"] is True
    assert given.get("use_kernels", False) is False and given.get("allow_all_kernels", False) is False
    assert shut(transformers.AutoConfig.from_pretrained, "owner/name")["local_files_only"] is False
    assert shut(transformers.AutoTokenizer.from_pretrained, folder)["trust_remote_code"] is False


def test_the_lists_of_arguments_are_closed():
    """Whatever transformers looks up beyond these is never passed on."""
    for name in (
        "adapter_kwargs",
        "state_dict",
        "gguf_file",
        "key_mapping",
        "proxies",
        "_from_auto",
        "generation_config",
    ):
        assert name not in {**HUB_ARGUMENTS, **MODEL_ARGUMENTS, **TOKENIZER_ARGUMENTS}


def write_gpt2(folder: Path, **more) -> Path:
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **more}))
    return folder


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": {"": "owner/kernel@v1"}},
        {"experts_implementation": "owner/kernel:f"},
        {"use_kernels": True},
        {"kernel_config": {"RMSNorm": "owner/kernel"}},
        {"text_config": {"attn_implementation": "owner/kernel"}},
        {"vision_config": {"model_type": "timm_wrapper"}},
        {"use_pretrained_backbone": "no"},
        {"backbone_kwargs": {"checkpoint_path": "x.pth"}},
    ],
)
def test_a_configuration_in_a_folder_opens_nothing(tmp_path, more):
    folder = write_gpt2(tmp_path / "hf", **more)
    with pytest.raises(ConfigError, match="would run code that is not in it"):
        doors.check_folder(str(folder))


def test_harmless_folders_pass_and_load(tmp_path):
    folder = write_gpt2(tmp_path / "hf", auto_map={"AutoModel": "code.Model"}, _attn_implementation="sdpa")
    doors.check_folder(str(folder), weights=True)
    arguments = {SOURCE: str(folder), "resid_pdrop": 0.5}
    auto = transformers.AutoModelForCausalLM.from_pretrained
    model = transformers_calls.call(auto, arguments, role="model", is_trusted=False)
    assert model.config.resid_pdrop == 0.5


def test_fields_take_the_kind_of_value_they_have():
    config = transformers.GPT2Config()
    assert transformers_calls.checked_fields(config, {"use_cache": "off", "n_layer": 3}) == {
        "use_cache": False,
        "n_layer": 3,
    }
    for wrong in ({"use_cache": "maybe"}, {"n_layer": True}, {"resid_pdrop": "nan"}, {"no_such": 1}):
        with pytest.raises(transformers_calls.FieldErrors):
            transformers_calls.checked_fields(config, wrong)


def test_pickles_and_adapters_are_refused(tmp_path):
    folder = write_gpt2(tmp_path / "hf")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil"}))
    with pytest.raises(ConfigError, match="is an adapter"):
        doors.check_folder(str(folder), weights=True)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pickles \(pytorch_model.bin\)"):
        doors.check_folder(str(folder), weights=True)


AUTO = "transformers.AutoModelForCausalLM.from_pretrained"


def test_a_config_of_another_source_is_checked_and_used(tmp_path):
    weights, other = write_gpt2(tmp_path / "weights"), write_gpt2(tmp_path / "other", layer_norm_epsilon=0.5)
    found = instantiate(Target(AUTO, {SOURCE: str(weights), "config": str(other)}), "model")
    assert found.config.layer_norm_epsilon == 0.5

    kernel = write_gpt2(tmp_path / "kernel", attn_implementation="evil/kernel")
    with pytest.raises(ConfigError, match="evil/kernel"):
        instantiate(Target(AUTO, {SOURCE: str(weights), "config": str(kernel)}), "model")


@pytest.mark.parametrize("nested", [True, False])
def test_trust_in_the_weights_is_no_trust_in_the_config(tmp_path, nested):
    other = str(tmp_path / "other")
    config = Target("transformers.AutoConfig.from_pretrained", {SOURCE: other}) if nested else other
    target = Target(AUTO, {SOURCE: str(tmp_path), "config": config, "trust_remote_code": True})
    assert f"--trust {other}" in check_target(target, "model", trust=[str(tmp_path)], imports=False).problems[0].text
    assert not check_target(target, "model", trust=[str(tmp_path), other], imports=False).problems


def test_a_key_beside_a_built_config_is_not_dropped(tmp_path):
    weights = write_gpt2(tmp_path / "weights")
    config = Target("transformers.AutoConfig.from_pretrained", {SOURCE: str(weights)})
    target = Target(AUTO, {SOURCE: str(weights), "config": config, "layer_norm_epsilon": 0.5})
    with pytest.raises(ConfigError, match="layer_norm_epsilon: set it in the section config"):
        instantiate(target, "model")
