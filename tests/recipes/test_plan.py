"""What a run would take: counts against the model itself, the length against the run, and what is refused."""

import pytest

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import PlanOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError
from automodel_cli.models.families import FAMILIES
from automodel_cli.recipes import plan
from automodel_cli.recipes.plan import count

SMALL = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "gpt": {"depth": 3, "aspect_ratio": 20, "head_dim": 16, "value_embeddings": True, "residual_scalars": True},
    "llama": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
}


def estimate(tiny_training, *overrides, options=None, **sections):
    path = tiny_training.config(validation_dataset=None, **sections)
    return plan.run(load_config(PretrainConfig, path, list(overrides)), options or PlanOptions())


@pytest.mark.parametrize("builder", FAMILIES)
def test_parts_sum_to_the_parameters_of_the_model(tiny_training, builder):
    family = builder.rpartition("build_")[2].removesuffix("_model")
    model = {"_target_": builder, "vocab_size": 128, **SMALL[family]}  # 128: no rows of padding
    found = estimate(tiny_training, model=model)
    built = tiny_training.recipe(model=model).model
    numbers = {name: parameter.numel() for name, parameter in built.named_parameters()}
    assert sum(found.params_by_role.values()) == found.params.total == sum(numbers.values())
    looked_up = sum(size for name, size in numbers.items() if built.param_roles()[name] in ("embedding", "position"))
    assert found.params.non_embedding == found.params.total - looked_up
    matrices = sum(size for name, size in numbers.items() if built.param_roles()[name] == "matrix")
    assert found.params.scaling == matrices + 128 * built.shape().hidden


@pytest.mark.parametrize(
    "horizon", ["max_steps=7", "max_tokens=5000", "target_flops=1e9", "tokens_per_param=0.5", "num_epochs=3"]
)
def test_it_is_as_long_as_the_run(tiny_training, horizon):
    words = ["step_scheduler.max_steps=null", f"step_scheduler.{horizon}"]
    found, length = estimate(tiny_training, *words), tiny_training.recipe(*words).training_length
    assert (found.steps, found.tokens, found.horizon) == (length.total_steps, length.total_tokens, length.reason)


def test_tokens_there_and_needed(tiny_training):
    enough = estimate(tiny_training, "step_scheduler.max_tokens=10000")
    assert (enough.data_tokens, enough.warnings) == (20_000, [])
    again = estimate(tiny_training, "step_scheduler.max_tokens=40960")
    assert again.epochs == 2.048
    (warning,) = again.warnings
    assert "40,960 tokens are needed and 20,000 are there (2.05 passes)" in warning and "little" not in warning
    assert "beyond 4 passes" in estimate(tiny_training, "step_scheduler.max_tokens=1M").warnings[0]


def test_tokens_of_a_mixture_are_those_of_its_sources(tiny_training):
    files = {"a": {"file_pattern": str(tiny_training.data / "train.bin"), "weight": 1}}
    files["b"] = {"file_pattern": str(tiny_training.data / "val.bin"), "weight": 3}
    words = ["step_scheduler.max_steps=null", "step_scheduler.num_epochs=2"]
    mixture = {"_target_": "Mixture", "seq_len": 32, "sources": files}
    found = estimate(tiny_training, *words, dataset=mixture)
    assert found.data_tokens == 22_000
    assert found.steps == tiny_training.recipe(*words, dataset=mixture).training_length.total_steps


def test_a_source_that_is_read_too_often_is_named(tiny_training):
    """As the mixture itself counts: a small source of much weight repeats, though there is enough text in all."""
    files = {"big": {"file_pattern": str(tiny_training.data / "train.bin"), "weight": 1}}
    files["small"] = {"file_pattern": str(tiny_training.data / "val.bin"), "weight": 3}
    mixture = {"_target_": "Mixture", "seq_len": 32, "sources": files}
    words = ["step_scheduler.max_steps=60"]
    found = estimate(tiny_training, *words, dataset=mixture)
    stats = tiny_training.recipe(*words, dataset=mixture).run.loader.dataset.source_stats()
    assert found.source_passes == {one.name: one.windows / one.available for one in stats}
    (warning,) = found.warnings
    assert "small 5.81 passes; beyond 4" in warning and "big" not in warning
    stages = [{"until": 0.5, "weights": {"big": 1}}, {"until": 1}]
    half = estimate(tiny_training, *words, dataset={**mixture, "stages": stages}).source_passes
    assert half["small"] == pytest.approx(found.source_passes["small"] / 2, rel=0.02)
    assert estimate(tiny_training, *words).source_passes == {}
    for weight, says in ((None, "small has no weight, others have"), ("much", "small has the weight 'much'")):
        files["small"]["weight"] = weight
        with pytest.raises(ConfigError, match=says):
            estimate(tiny_training, *words, dataset=mixture)


def test_an_update_has_to_come_out_even_on_the_gpus(tiny_training):
    with pytest.raises(ConfigError, match="not a multiple of local_batch_size 4 x 3 data-parallel ranks"):
        estimate(tiny_training, options=PlanOptions(num_gpus=3))
    with pytest.raises(ConfigError, match="not a multiple"):
        estimate(tiny_training, "step_scheduler.local_batch_size=auto", options=PlanOptions(num_gpus=16))
    words = ["distributed.strategy=fsdp2", "distributed.tp_size=3"]
    assert estimate(tiny_training, *words, options=PlanOptions(num_gpus=6)).memory


def test_data_that_are_not_there_are_needed_only_for_a_length_by_them(tiny_training):
    gone = "dataset.file_pattern=gone/*.bin"
    found = estimate(tiny_training, gone, "step_scheduler.max_tokens=10K")
    assert (found.data_tokens, found.epochs, found.warnings) == (None, None, [])
    assert "no file matches gone" in found.missing
    with pytest.raises(ConfigError, match="depends on the data: no file matches gone"):
        estimate(tiny_training, gone, "step_scheduler.max_steps=null")


def test_less_than_an_update_and_other_models_are_refused(tiny_training):
    with pytest.raises(ConfigError, match="less than one update"):
        estimate(tiny_training, "step_scheduler.target_flops=1e6")
    with pytest.raises(ConfigError, match="less than one update"):
        estimate(tiny_training, "step_scheduler.max_steps=null", "step_scheduler.global_batch_size=4096")
    other = {"_target_": "transformers.GPT2LMHeadModel", "config": {"_target_": "transformers.GPT2Config"}}
    with pytest.raises(ConfigError, match="is not known before it is built") as caught:
        estimate(tiny_training, model=other)
    assert "--dry-run" in caught.value.hint


def test_time_and_cost(tiny_training):
    found = estimate(tiny_training, options=PlanOptions(gpu="H100", num_gpus=2, mfu=0.5, price=3))
    time = found.time
    assert time.tokens_per_s == pytest.approx(989e12 * 0.5 * 2 / found.flops_per_token)
    assert time.gpu_hours * 3600 == pytest.approx(found.flops / (989e12 * 0.5))
    assert time.cost == pytest.approx(3 * time.gpu_hours)
    assert estimate(tiny_training).time is None
    with pytest.raises(ConfigError, match="peak of 'abacus'"):
        estimate(tiny_training, options=PlanOptions(gpu="abacus"))


def test_a_run_by_time_is_as_long_as_the_gpu_makes_it(tiny_training):
    timed = ("step_scheduler.max_minutes=2", "lr_scheduler.lr_decay_style=constant")
    found = estimate(tiny_training, *timed, options=PlanOptions(gpu="H100"))
    assert found.time.hours * 60 == pytest.approx(2, rel=1e-3)
    with pytest.raises(ConfigError, match="max_minutes 2 says no number of updates"):
        estimate(tiny_training, *timed)
    with pytest.raises(ConfigError, match="max_minutes 1e-09 is less than one update takes"):
        estimate(tiny_training, *timed, "step_scheduler.max_minutes=1e-9", options=PlanOptions(gpu="H100"))


def test_schedules_count_and_are_checked(tiny_training):
    sizes = "step_scheduler.global_batch_size=[{until_step: 1000, size: 4}, {size: 8}]"
    timed = ("step_scheduler.max_minutes=2", "lr_scheduler.lr_decay_style=constant", "step_scheduler.max_steps=null")
    found = estimate(tiny_training, *timed, sizes, options=PlanOptions(gpu="H100"))
    assert found.tokens == 32 * (1000 * 4 + (found.steps - 1000) * 8)
    assert found.time.hours * 60 == pytest.approx(2, rel=1e-3)
    short = [{"until_step": 9, "size": 6}, {"size": 8}]
    auto = estimate(tiny_training, step_scheduler={"global_batch_size": short, "local_batch_size": "auto"})
    assert {one.local_batch_size for one in auto.memory} == {2}
    with pytest.raises(ConfigError, match=r"seq_len_schedule\[0\].seq_len is 5"):
        estimate(tiny_training, "step_scheduler.seq_len_schedule=[{until_step: 3, seq_len: 5}]")


def test_the_micro_batch_is_the_largest_that_fits(tiny_training):
    words = ["model.n_embd=768", "model.n_layer=12", "model.n_positions=1024", "model.vocab_size=50257"]
    words += ["dataset.seq_len=1024", "step_scheduler.global_batch_size=512", "step_scheduler.max_steps=9"]
    words += ["model.n_head=12", "model.dropout=0"]
    auto = estimate(tiny_training, *words, "step_scheduler.local_batch_size=auto").memory
    assert [one.card_gib for one in auto] == [8, 12, 24, 80]
    rows = [one.local_batch_size for one in auto]
    assert rows == sorted(rows) and rows[0] < rows[-1]
    assert all(one.peak_gib <= 0.9 * one.card_gib for one in auto)
    assert all(one.local_batch_size * one.micro_batches == 512 for one in auto)
    fixed = estimate(tiny_training, *words, "step_scheduler.local_batch_size=64").memory
    assert [one.local_batch_size for one in fixed] == [64 if one.peak_gib <= 0.9 * one.card_gib else 0 for one in fixed]
    assert len({one.peak_gib for one in fixed}) == 1


@pytest.mark.parametrize(("number", "text"), [(2.048, "2.05"), (99.96, "100"), (2406.1, "2,406")])
def test_count(number, text):
    assert count(number) == text
