from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from automodel_cli.config.explain import all_keys, describe_type, field_at, section_of, unknown_key
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.base import Count, Interval, TypeName
from automodel_cli.config.schema.chat import MixtureConfig
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.run_sections import DistributedConfig, MixedPrecisionConfig
from automodel_cli.config.targets.target import Target, describe_value, is_secret
from automodel_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (bool | Literal["auto"], "true, false or auto"),
        (Literal[False, "final", "every"], "false, final or every"),
        (Interval, "a whole number from 1 up, final or null"),
        (tuple[str, ...], "a list of text"),
        (list[Count], "a list of a whole number from 1 up"),
        (dict[str, Any] | None, "a mapping or null"),
        (Annotated[str, TypeName("a colour")] | None, "a colour or null"),
        (Target | str | None, "a mapping with _target_, text or null"),
        (MixedPrecisionConfig | None, "a mapping or null"),
        (Any, "any value"),
        (Annotated[float, Field(gt=0, le=1)] | None, "a number above 0 and up to 1 or null"),
        (Annotated[int, Field(ge=2)], "a whole number from 2"),
        (Annotated[float, Field(lt=1)], "a number below 1"),
    ],
)
def test_types_in_words(annotation, words):
    assert describe_type(annotation) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (3e-4, "0.0003"),
        ("x", "the text 'x'"),
        ({"a": 1}, "a mapping"),
        ([1], "a list"),
    ],
)
def test_values_in_words(value, words):
    assert describe_value(value) == words
    assert len(describe_value("x" * 1000)) < 100


def test_fields_are_found_by_key_and_by_old_key():
    assert field_at(PretrainConfig, ("checkpoint", "max_recent_checkpoints")).annotation == Count | None
    assert field_at(PretrainConfig, ("distributed", "mp_policy", "param_dtype")) is not None
    assert field_at(PretrainConfig, ("model", "n_layer")) is None
    assert field_at(PretrainConfig, ()) is None


def test_sections_inside_types():
    assert section_of(MixedPrecisionConfig | None) is MixedPrecisionConfig
    assert section_of(tuple[MixedPrecisionConfig, ...]) is MixedPrecisionConfig
    assert section_of(dict[str, MixedPrecisionConfig]) is None
    assert section_of(int | None) is None


def test_unknown_keys_find_their_section():
    assert unknown_key(PretrainConfig, ("wsd_decay_steps",)).endswith("did you mean lr_scheduler.wsd_decay_steps?")
    assert unknown_key(PretrainConfig, ("keep_lst",)).endswith("did you mean checkpoint.keep_last?")
    assert unknown_key(PretrainConfig, ("packing_strateg",)) == "unknown key"  # never one without effect
    assert unknown_key(DistributedConfig, ("tpsize",)).endswith("did you mean tp_size?")
    assert len(set(all_keys(PretrainConfig))) == len(all_keys(PretrainConfig))


def test_secrets_are_known_by_their_whole_name():
    assert all(is_secret(key) for key in ("token", "HF_TOKEN", "api_key", "password"))
    assert not any(is_secret(key) for key in ("bos_token", "tokenizer", "max_tokens", "pad_token_id", 3))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{weight: .nan}", "tasks.gsm8k.weight: expected a number above 0, found nan"),
        ("{epoch: 2}", r"tasks.gsm8k.epoch: unknown key, did you mean tasks.gsm8k.epochs\?"),
        ("null", "tasks.gsm8k: expected a mapping, found null"),
    ],
)
def test_keys_of_a_mapping_of_sections(tmp_path, task, message):
    path = tmp_path / "mixture.yaml"
    path.write_text(f"tasks: {{gsm8k: {task}}}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(MixtureConfig, path)
