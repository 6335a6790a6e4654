"""The way in and out for Hugging Face families: a configuration trains, is exported, loads in transformers with the
same logits, and is scored and continued by our commands from the exported folder alone."""

from __future__ import annotations

import pytest
import torch
import transformers

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.batch import Batch
from automodel_cli.config.schema.results import EvaluateConfig
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.recipes.evaluation import likelihood as evaluate

CONFIGS = {
    "gpt2": ("GPT2Config", {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {}),
    "mamba2": (
        "Mamba2Config",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "pad_token_id": 0,
        },
    ),
}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def model_section(family):
    tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    if family == "our llama":
        return {"_target_": "automodel_cli.models.llama.build_llama_model", **tokens, **SHAPE}
    name, own = CONFIGS[family]
    shape = own if family in ("gpt2", "mamba2") else {**SHAPE, **own}
    config = {"_target_": f"transformers.{name}", **tokens, **shape}
    return {"_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_config", "config": config}


@pytest.mark.parametrize("family", [*CONFIGS, "our llama"])
def test_train_export_score_continue(family, tiny_training):
    run = tiny_training.recipe(
        model=model_section(family),
        step_scheduler={"max_steps": 6, "val_every_steps": "final", "ckpt_every_steps": "final"},
        precision="fp32",
    )
    result = run.run_train_validation_loop()
    losses = tiny_training.losses()
    assert losses[6] < losses[1]

    folder = result.checkpoint / "hf"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert theirs.config.model_type == family.removeprefix("our ")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        ours = load_model(str(result.checkpoint)).model.eval()(Batch(ids))
        torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-5, rtol=1e-5)

    scores = evaluate.run(
        EvaluateConfig(
            checkpoint=str(folder),
            data=(str(tiny_training.data / "val.bin"),),
            seq_len=32,
            precision="fp32",
            output=str(tiny_training.folder / "results.json"),
        )
    )
    (score,) = scores.results["sets"]
    assert score["loss"] == pytest.approx(result.val_losses["default"], abs=1e-5)

    loaded = load_model(str(folder)).model
    ((sample,),) = generate(loaded, [[5, 6, 7]], SamplingSettings(8, temperature=0))
    expected = theirs.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert sample.ids == expected[0, 3:].tolist()
