"""Sections of other tools' files: switched off they are dropped, switched on they are taken or refused in one line."""

import pytest
import yaml

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.other_sections import UNSUPPORTED_SECTIONS
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError

BASE = {
    "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model"},
    "dataset": {"_target_": "nemo_automodel.components.datasets.llm.megatron_dataset.MegatronPretraining",
                "paths": "x", "index_mapping_dir": "m", "seq_length": 8, "tokenizer": None},
}  # fmt: skip


def load(tmp_path, **sections):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**BASE, **sections}))
    return load_config(PretrainConfig, path)


@pytest.mark.parametrize("off", [None, {}, [], {"enabled": False}, {"enable": False, "more": 1}])
def test_what_is_switched_off_is_dropped(tmp_path, off):
    cfg = load(tmp_path, **dict.fromkeys(UNSUPPORTED_SECTIONS, off))
    assert cfg.notes == [] and not set(UNSUPPORTED_SECTIONS) & set(yaml.safe_load(to_yaml(cfg)))


def test_what_is_on_is_refused_with_its_line_all_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **{name: {"enabled": True, "x": 1} for name in UNSUPPORTED_SECTIONS})
    for name, advice in UNSUPPORTED_SECTIONS.items():
        assert f": {name}: {advice}" in caught.value.message


def test_without_effect_is_said(tmp_path):
    cfg = load(
        tmp_path,
        prewarm={"cublas_backward": True, "comm_groups": True},
        moe_metrics={"enabled": True, "mode": "brief"},
        nvtx=True,
        dataloader={
            "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
            "packing": False,
            "emits_thd": False,
            "group_by_length": True,
        },
    )
    said = "\n".join(cfg.notes)
    for key in (
        "prewarm.cublas_backward",
        "prewarm.comm_groups",
        "moe_metrics.mode",
        "nvtx",
        "dataloader.emits_thd",
    ):
        assert f"{key} is ignored" in said


def test_mfu_takes_a_peak_or_a_device_of_the_table(tmp_path):
    assert load(tmp_path, mfu={"peak_tflops": 100}).mfu.peak_tflops == 100
    assert load(tmp_path, mfu={"device": "NVIDIA H100 80GB HBM3"}).mfu.device
    with pytest.raises(ConfigError, match=r"c\.yaml:\d+: mfu\.device: 'abacus' is not in the table"):
        load(tmp_path, mfu={"device": "abacus"})
