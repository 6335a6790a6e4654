"""A run stays within the memory that its plan promises: validation beside training, two threads, whole logits.

With a heap that keeps freed blocks this run grew by 200 MiB a batch; the plan was for 0.8 GiB.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

DATASET = "_target_=automodel_cli.data.nanogpt_dataset.NanogptDataset"

RUN = """
import json, sys
from pathlib import Path
from automodel_cli.device import prefer_huge_pages
prefer_huge_pages()
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.recipes.pretrain import PretrainRecipe

recipe = PretrainRecipe(load_config(PretrainConfig, None, sys.argv[1:], {}))
recipe.setup()
recipe.run_train_validation_loop()
lines = Path("/proc/self/status").read_text().splitlines()
highest = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10
print(json.dumps([recipe.peak.total, highest]))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="no /proc")
def test_a_run_with_validation_stays_within_its_plan(tiny_tokens, tmp_path):
    dataset = f"file_pattern={tiny_tokens / 'train.bin'}"
    settings = [
        "model._target_=automodel_cli.models.gpt2.build_gpt2_model",
        *(f"model.{size}" for size in ("vocab_size=50257", "n_positions=128", "n_embd=64", "n_layer=2", "n_head=4")),
        "loss_fn._target_=torch.nn.CrossEntropyLoss",  # whole logits: 98 MiB, several times
        *(
            f"{section}.{key}"
            for section in ("dataset", "validation_dataset")
            for key in (DATASET, dataset, "seq_len=128")
        ),
        *(f"step_scheduler.{key}" for key in ("global_batch_size=4", "local_batch_size=4", "max_steps=2")),
        *(f"step_scheduler.{key}" for key in ("val_every_steps=1", "limit_val_batches=6")),
        "precision=fp32",
        "compile=false",
        "checkpoint.enabled=false",
        f"checkpoint.checkpoint_dir={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *settings],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert measured < 1.15 * predicted
    assert measured > 0.8 * predicted
