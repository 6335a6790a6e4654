"""Rebuilding from a checkpoint's JSON; each family's own test compares outputs."""

import json

import pytest
import transformers
from torch.distributed.fsdp import FSDPModule

from automodel_cli.config.targets.roles import ROLES
from automodel_cli.errors import CheckpointError
from automodel_cli.models.external import needs_code
from automodel_cli.models.families import FAMILIES, build_from_config
from automodel_cli.models.gpt2 import GPT2, build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.huggingface.model import HFCausalLM
from automodel_cli.models.llama import Llama, build_llama_model

SIZES = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 50}


def test_files_may_name_every_family():
    """The configuration lists them by name: it lies below the models, and imports none."""
    assert FAMILIES.items() <= ROLES["model"].ours.items()


@pytest.mark.parametrize("kind", [GPT2, Llama, HFCausalLM])
def test_the_json_in_a_checkpoint_is_enough(kind):
    model = {
        GPT2: lambda: build_gpt2_model(**SIZES),
        Llama: lambda: build_llama_model(hidden_size=32, num_hidden_layers=1, num_attention_heads=2),
        HFCausalLM: lambda: from_config(transformers.GPT2Config(**SIZES)),
    }[kind]()
    again = build_from_config(json.loads(json.dumps(model.model_config())), is_meta_device=True)
    assert type(again) is kind
    assert all(parameter.is_meta for parameter in again.parameters())
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_the_class_that_fsdp_gives_a_model_is_not_code_of_somebody():
    model = build_gpt2_model(**SIZES)
    model.__class__ = type("FSDPGPT2", (FSDPModule, GPT2), {"__module__": "abc"})  # as fully_shard does
    assert not needs_code(model)


@pytest.mark.parametrize("family", ["foreign", "martian", None])
def test_what_cannot_be_rebuilt_says_so(family):
    with pytest.raises(CheckpointError, match=str(family)):
        build_from_config({"family": family})


def test_a_model_type_that_transformers_does_not_know():
    with pytest.raises(CheckpointError, match="cannot build MartianForCausalLM"):
        build_from_config({"family": "hf", "class": "MartianForCausalLM", "model_type": "martian", "config": {}})
