"""Where a run ends: one key, in whole updates, known without torch."""

import pytest

from automodel_cli.config.horizon import Horizon, horizon_of
from automodel_cli.errors import ConfigError

GPT = """\
model: {depth: 6, vocab_size: 50304, value_embeddings: true, max_position_embeddings: 2048}
dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: data.bin
  seq_len: 2048
"""


def steps(load_text, *overrides) -> int | None:
    return horizon_of(load_text(GPT, *overrides)).steps


@pytest.mark.parametrize(
    ("depth", "auto", "at_2_19", "ten_tokens_each"),
    [(6, 16148, 8074, 1141), (12, 1970, 1970, 2356), (20, 282, 565, 4364)],
)
def test_worked_examples(load_text, depth, auto, at_2_19, ten_tokens_each):
    """Counted for a fork of nanochat on its own model: 1e18 FLOPs, rows of 2048, and 10 tokens a parameter."""
    dial = f"model.depth={depth}"
    assert steps(load_text, dial, "step_scheduler.target_flops=1e18") == auto
    fixed = "step_scheduler.global_batch_size=256"
    assert steps(load_text, dial, fixed, "step_scheduler.target_flops=1e18") == at_2_19
    assert steps(load_text, dial, "step_scheduler.tokens_per_param=10") == ten_tokens_each


@pytest.mark.parametrize(("depth", "at_2_19"), [(6, 9173), (12, 2231), (20, 623)])
def test_shorter_rows_cost_less(load_text, depth, at_2_19):
    found = steps(
        load_text,
        f"model.depth={depth}",
        "dataset.seq_len=1024",
        "step_scheduler.global_batch_size=512",
        "step_scheduler.target_flops=1e18",
    )
    assert found == at_2_19


def test_tokens_are_rounded_down_to_whole_updates(load_text):
    one = 128 * 2048
    assert steps(load_text, f"step_scheduler.max_tokens={3 * one - 1}") == 2
    assert steps(load_text, "step_scheduler.max_tokens=1B") == 10**9 // one
    assert horizon_of(load_text(GPT)) == Horizon(None)
    assert horizon_of(load_text(GPT, "step_scheduler.max_tokens=1B")).reason == "max_tokens 1,000,000,000"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["step_scheduler.max_tokens=10K"], r"max_tokens 10,000 is 10,000 tokens, less than one update of 262,144"),
        (["model.depth=20", "step_scheduler.target_flops=1e15"], r"296,312 tokens, less than one update of 1,048,576"),
    ],
)
def test_less_than_one_update_is_refused(load_text, overrides, says):
    with pytest.raises(ConfigError, match=says) as caught:
        steps(load_text, *overrides)
    assert "global_batch_size" in caught.value.hint


def test_two_horizons_are_refused(load_text):
    both = ["step_scheduler.target_flops=1e18", "step_scheduler.max_tokens=1B"]
    with pytest.raises(ConfigError, match=r"step_scheduler: found max_tokens and target_flops, expected one of them"):
        load_text(GPT, *both)


def test_steps_and_epochs_go_together_as_in_older_files(load_text):
    cfg = load_text(GPT, "step_scheduler.max_steps=9", "step_scheduler.num_epochs=2")
    assert (cfg.step_scheduler.num_epochs, horizon_of(cfg).steps) == (2, 9)


def test_the_command_line_replaces_the_horizon_of_the_file(load_text):
    text = GPT + "step_scheduler: {num_epochs: 1, max_steps: 7}\n"
    cfg = load_text(text, "step_scheduler.target_flops=1e18")
    assert (cfg.step_scheduler.num_epochs, horizon_of(cfg).steps) == (None, 16148)
    assert load_text(text, "step_scheduler.max_steps=3").step_scheduler.num_epochs == 1
    smoke = load_text(GPT + "step_scheduler: {tokens_per_param: 20}\n", "step_scheduler.max_steps=3")
    assert horizon_of(smoke) == Horizon(3)
    assert load_text(text, "step_scheduler.target_flops=null").step_scheduler.max_steps == 7


HF = """\
model:
  _target_: automodel_cli.models.hf.from_config
  config: {_target_: transformers.GPT2Config, n_layer: 2}
dataset:
  _target_: automodel_cli.data.nanogpt_dataset.NanogptDataset
  file_pattern: data.bin
  seq_len: 64
"""


@pytest.mark.parametrize("key", ["target_flops=1e18", "tokens_per_param=20"])
def test_the_size_of_another_model_is_not_known_before_it_is_built(load_text, key):
    with pytest.raises(ConfigError, match=r"the size of automodel_cli.models.hf.from_config is not known") as caught:
        horizon_of(load_text(HF, f"step_scheduler.{key}"))
    assert "max_tokens or max_steps" in caught.value.hint
    assert horizon_of(load_text(HF, "step_scheduler.max_tokens=1M")).steps == 10**6 // (32 * 64)


def test_rows_of_unknown_length_cannot_be_counted(load_text, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def rows(): ...")
    text = f"model: {{depth: 6}}\ndataset: {{_target_: '{own}:rows'}}\n"
    with pytest.raises(ConfigError, match="does not say how long its rows are") as caught:
        horizon_of(load_text(text, "step_scheduler.max_tokens=1B", trust=[str(own)]))
    assert "max_steps" in caught.value.hint
    packed = load_text(
        text, "packed_sequence.packed_sequence_size=1024", "step_scheduler.max_tokens=1B", trust=[str(own)]
    )
    assert horizon_of(packed).steps == 10**9 // 2**18
