"""``local_batch_size: auto``: the largest that fits, no larger than helps, the same on all ranks and after a resume."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.assembly.facts import Facts
from automodel_cli.assembly.machine.batch_size import SHARE, choose, settled
from automodel_cli.assembly.machine.fast_path import StepPath
from automodel_cli.assembly.machine.memory import DeviceMemory, predict
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError
from automodel_cli.models.external import ExternalCausalLM
from automodel_cli.models.gpt2 import build_gpt2_model

GIB = 1 << 30
PLENTY = DeviceMemory(total=100 * GIB, free=100 * GIB)


@pytest.fixture
def model():
    return build_gpt2_model(vocab_size=1000, n_positions=256, n_embd=128, n_layer=2, n_head=2, is_meta_device=True)


def config(tiny_training, *overrides, rows="auto", global_rows=24):
    sizes = {"local_batch_size": rows, "global_batch_size": global_rows}
    return load_config(PretrainConfig, tiny_training.config(step_scheduler=sizes), list(overrides))


def chosen(cfg, model, memory=PLENTY, *, seq_len=256, stored=None, world=None):
    return choose(cfg, model, world or World.single(), memory, seq_len=seq_len, stored=Facts.from_json(stored or {}))


def needed(cfg, model, rows, head_loss="plain"):
    path = StepPath("fp32", "fp32", compile=False, compile_scope="model", head_loss=head_loss, orthogonalization="none")
    return predict(cfg, model, World.single(), path, seq_len=256, local_batch_size=rows).total


def test_a_number_stays(tiny_training, model):
    found = chosen(config(tiny_training, rows=4), model, memory=None)
    assert (found.rows, found.reason) == (4, "")


def test_all_rows_where_they_fit(tiny_training, model):
    found = chosen(config(tiny_training), model)
    assert found.rows == 24
    assert "all that a rank has" in found.reason


def test_no_more_tokens_than_help(tiny_training, model):
    found = chosen(config(tiny_training, global_rows=1024), model)
    assert found.rows == 64  # 16,384 tokens
    assert "would not be faster" in found.reason
    assert chosen(config(tiny_training), model, seq_len=20_000).rows == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 8, 12])
def test_the_largest_divisor_that_fits(tiny_training, model, rows):
    cfg = config(tiny_training, "precision=fp32", "compile=false")
    free = round(needed(cfg, model, rows) / SHARE) + 1
    found = chosen(cfg, model, DeviceMemory(total=free, free=free))
    assert found.rows == rows
    assert "does not fit" in found.reason


def test_what_the_process_has_already_is_not_counted_twice(tiny_training, model):
    cfg = config(tiny_training, "precision=fp32", "compile=false")
    free = round(needed(cfg, model, 6) / SHARE) + 1
    assert chosen(cfg, model, DeviceMemory(total=free, free=free, resident=GIB)).rows == 6


def test_where_nothing_fits_it_is_said_what_helps(tiny_training, model):
    with pytest.raises(ConfigError, match=r"even 1 sequence of 256 tokens needs about") as error:
        chosen(config(tiny_training), model, DeviceMemory(total=1 << 20, free=1 << 20))
    for word in ("activation_checkpointing", "seq_len", "ranks"):
        assert word in error.value.hint


def test_a_model_of_unknown_shape_wants_a_number(tiny_training):
    own = ExternalCausalLM(torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8)))
    with pytest.raises(ConfigError, match="needs of memory is not known") as error:
        chosen(config(tiny_training), own)
    assert "number" in error.value.hint


def test_unknown_memory_wants_a_number(tiny_training, model):
    with pytest.raises(ConfigError, match="the memory of cpu is not known"):
        chosen(config(tiny_training), model, memory=None)


def test_a_resume_keeps_what_still_divides(tiny_training, model):
    cfg = config(tiny_training)
    found = chosen(cfg, model, stored={"batch": {"global": 24, "local": 3}})
    assert (found.rows, found.reason) == (3, "auto: as stored with the run")
    assert chosen(cfg, model, stored={"batch": {"global": 25, "local": 5}}).rows == 24


class DistributedGradSync(World):
    """Two data-parallel ranks, of which the other has chosen already."""

    dp_world = 2

    def gather(self, value):
        return [value, [2, "auto: of the other rank"]]


def test_ranks_take_the_smallest(tiny_training, model):
    world = DistributedGradSync(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    found = chosen(config(tiny_training), model, world=world)
    assert (found.rows, found.reason) == (2, "auto: of the other rank")
    with pytest.raises(ConfigError, match="is not a multiple of 2 data-parallel ranks"):
        chosen(config(tiny_training, global_rows=25), model, world=world)


def test_the_number_takes_the_place_of_auto(tiny_training, model):
    cfg = config(tiny_training)
    after = settled(cfg, chosen(cfg, model))
    assert (cfg.step_scheduler.local_batch_size, after.step_scheduler.local_rows) == ("auto", 24)
    assert after.step_scheduler.global_batch_size == 24


def test_auto_is_no_number(tiny_training):
    with pytest.raises(AssertionError):
        _ = config(tiny_training).step_scheduler.local_rows
    with pytest.raises(ConfigError):
        config(tiny_training, rows="most")
