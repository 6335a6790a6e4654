"""What a resume takes over of the path that a run took."""

from __future__ import annotations

import pytest
import torch

from automodel_cli import device
from automodel_cli.assembly.machine import fast_path
from automodel_cli.assembly.machine.fast_path import choose_fast_path
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.checkpoint.step_manifest import FastPathFacts
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.models.gpt import build_gpt_model
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.layers import attention_kernels


def chosen(tiny_training, stored, processes=1, overrides=(), model=None, **sizes):
    model = model or build_gpt2_model(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2, **sizes)
    return choose_fast_path(
        load_config(PretrainConfig, tiny_training.config(), list(overrides)),
        device=torch.device("cpu"),
        training_length=TrainingLength(10, BatchSizes.of(8), 32, "max_steps"),
        model=model,
        rows=4,
        seq_len=32,
        stored=stored,
        processes=processes,
    )


def test_stored_choices_hold(tiny_training):
    path = {
        "precision": "bf16",
        "residual": "bf16",
        "compile": True,
        "compile_mode": "default",
        "compile_scope": "blocks",
        "head_loss": "chunked",
        "attention": "model",
        "optimizer": "foreach",
        "orthogonalization": "none",
        "fp8": {"recipe": "off"},
        "threads": 77,
        "processes": 1,
    }
    assert chosen(tiny_training, path).stored() == path


@pytest.mark.parametrize("kept", ["plain", "chunked"])
def test_a_stored_loss_is_not_timed_again(tiny_training, monkeypatch, kept):
    monkeypatch.setattr(fast_path, "pick_loss", lambda **size: pytest.fail("the run has chosen"))
    path = chosen(tiny_training, {"head_loss": kept})
    assert (path.head_loss, path.reasons["head_loss"]) == (kept, "as stored with the run")


def test_a_loss_is_chosen_for_the_head_of_the_model(tiny_training, monkeypatch):
    monkeypatch.setattr(fast_path, "pick_loss", lambda **size: ("chunked", str(sorted(size.items()))))
    path = chosen(tiny_training, None, overrides=["precision=fp32"])
    size = {"device": torch.device("cpu"), "dtype": None, "tokens": 128, "vocab_size": 128, "width": 32}
    assert path.reasons["head_loss"] == str(sorted(size.items()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("automodel_cli.train.losses.ChunkedCrossEntropy", "chunked"), ("torch.nn.CrossEntropyLoss", "plain")],
)
def test_a_loss_that_is_named_wins(tiny_training, monkeypatch, name, expected):
    monkeypatch.setattr(fast_path, "pick_loss", lambda **size: pytest.fail("the configuration has chosen"))
    for stored in (None, {"head_loss": "plain"}, {"head_loss": "chunked"}):
        path = chosen(tiny_training, stored, overrides=[f"loss_fn._target_={name}"])
        assert (path.head_loss, path.reasons["head_loss"]) == (expected, "as configured")


def test_chunks_with_a_softcap_have_a_name_of_their_own(tiny_training, monkeypatch):
    """A run from before losses capped logits has used whole ones, whatever it had chosen: it goes on so."""
    model = build_gpt_model(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, softcap=15.0)
    monkeypatch.setattr(fast_path, "pick_loss", lambda **size: ("chunked", "measured"))
    expected = {None: "chunked_capped", "chunked": "chunked", "plain": "plain", "chunked_capped": "chunked_capped"}
    losses = "loss_fn._target_=automodel_cli.train."
    chunked, package = f"{losses}losses.ChunkedCrossEntropy", f"{losses}packaged_losses.LigerCrossEntropy"
    for kept, taken in expected.items():
        stored = {"head_loss": kept} if kept else None
        assert chosen(tiny_training, stored, model=model).head_loss == taken
        assert FastPathFacts.model_validate({"head_loss": taken}).head_loss == taken
        named = "chunked_capped" if kept == "plain" else taken
        assert chosen(tiny_training, stored, overrides=[chunked], model=model).head_loss == named
    assert chosen(tiny_training, None, overrides=[package], model=model).head_loss == "chunked"


def test_stored_fp8_holds_without_force(tiny_training):
    fp8 = {"recipe": "tensorwise", "filter_fqns": ["attn"], "emulate": True}
    path = chosen(tiny_training, {"precision": "bf16", "fp8": fp8})
    assert path.fp8 == fp8
    assert path.reasons["fp8"] == ("tensorwise, emulated, 2 of 4 linear layers of the blocks, as stored with the run")


def test_a_checkpoint_from_before_fp8_has_none(tiny_training):
    assert chosen(tiny_training, {"precision": "bf16"}).fp8 == {"recipe": "off"}


def test_stored_threads_hold_for_as_many_processes_only(tiny_training):
    path = {"threads": 77, "processes": 4}
    assert chosen(tiny_training, path, processes=4).threads == 77
    assert chosen(tiny_training, path, processes=2).threads == torch.get_num_threads()
    assert chosen(tiny_training, {"threads": 77}, processes=2).threads == 77  # an older checkpoint


def test_a_kernel_that_this_machine_lacks_is_chosen_anew(tiny_training):
    assert chosen(tiny_training, {"attention": "cudnn"}).attention == "model"  # the run began on a GPU
    assert chosen(tiny_training, {"attention": "fa3"}).attention == "model"


def test_a_stored_stream_holds_with_its_precision_only(tiny_training):
    stored = {"precision": "bf16", "residual": "bf16"}
    assert chosen(tiny_training, stored).residual == "bf16"
    assert chosen(tiny_training, {**stored, "precision": "fp32"}).residual == "fp32"


def test_the_model_section_wins_over_a_stored_kernel(tiny_training, monkeypatch):
    monkeypatch.setattr(attention_kernels, "is_here", lambda kernel, device: True)
    assert chosen(tiny_training, {"attention": "flash"}).attention == "flash"
    assert chosen(tiny_training, {"attention": "flash"}, attn_implementation="sdpa").attention == "model"


MUON = ("optimizer._target_=muon_adamw", "optimizer.lr=0.02")


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx2"}, "float32"), ({"avx2", "avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16")],
)
def test_matrices_are_orthogonalized_in_what_the_cpu_computes_fast(tiny_training, monkeypatch, features, expected):
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset(features))
    assert chosen(tiny_training, None, overrides=MUON).orthogonalization == expected
    other = "float32" if expected == "bfloat16" else "bfloat16"
    assert chosen(tiny_training, {"orthogonalization": other}, overrides=MUON).orthogonalization == other
    named = (*MUON, f"optimizer.orthogonalization_dtype={other}")
    assert chosen(tiny_training, {"orthogonalization": expected}, overrides=named).orthogonalization == other


def test_a_run_from_before_there_was_a_choice_goes_on_in_bfloat16(tiny_training, monkeypatch):
    monkeypatch.setattr(device, "cpu_features", lambda: frozenset({"avx2"}))
    assert chosen(tiny_training, {"precision": "fp32"}, overrides=MUON).orthogonalization == "bfloat16"


def test_only_muon_orthogonalizes(tiny_training):
    assert chosen(tiny_training, None).orthogonalization == "none"
