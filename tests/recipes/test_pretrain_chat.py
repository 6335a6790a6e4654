"""Mid-training, whole: the tiny configuration trains on conversations, resumes exactly, and validates by task."""

import json
from pathlib import Path

import pytest
from tests.data.test_chat_dataset import make
from tests.recipes.preprocess.chat_files import smoltalk, task_mixture, write_jsonl

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.results import EvaluateConfig
from automodel_cli.errors import ConfigError
from automodel_cli.recipes.evaluation import likelihood
from automodel_cli.recipes.pretrain import TrainFinetuneRecipeForNextTokenPrediction as Recipe

CONFIG = Path(__file__).parents[2] / "configs/midtrain_tiny.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    return make(folder / "out", dataset=write_jsonl(folder / "chats.jsonl", smoltalk(60)), val_fraction=0.2)


def train(run: Path, data: Path, *overrides: str) -> tuple[list[dict], list[str]]:
    """The records of the run folder, and what was said."""
    sizes = ["model.n_embd=32", "model.n_layer=1", "step_scheduler.global_batch_size=4", "step_scheduler.max_steps=4"]
    sizes += ["step_scheduler.local_batch_size=2", "step_scheduler.val_every_steps=2"]
    sizes += ["lr_scheduler.lr_warmup_steps=1", "lr_scheduler.lr_decay_steps=4"]
    own = [f"dataset.file_pattern={data}", f"validation_dataset.file_pattern={data}"]
    own += [f"checkpoint.checkpoint_dir={run}", "step_scheduler.ckpt_every_steps=2"]
    said: list[str] = []
    reporter = Reporter(
        say=said.append,
        table=lambda title, rows: said.extend(f"{a}: {b}" for a, b in rows),
        columns=lambda title, headings, rows: None,
    )
    recipe = Recipe(load_config(PretrainConfig, CONFIG, [*sizes, *own, *overrides]), reporter=reporter)
    recipe.setup()
    recipe.run_train_validation_loop()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()], said


def losses(records: list[dict]) -> dict[int, float]:
    return {one["step"]: one["loss"] for one in records if one["kind"] == "train"}


def test_it_trains_validates_and_resumes_exactly(data, tmp_path) -> None:
    records, said = train(tmp_path / "whole", data)
    whole = losses(records)
    assert list(whole) == [1, 2, 3, 4] and whole[4] < whole[1]
    assert any(line.startswith("packing: ") for line in said)
    assert (tmp_path / "whole/step_00000004/tokenizer/automodel_tokenizer.json").is_file()
    validated = [one["loss"] for one in records if one["kind"] == "val"][-1]
    scored = likelihood.run(EvaluateConfig(checkpoint=str(tmp_path / "whole"), precision="auto")).results
    assert scored["loss"] == pytest.approx(validated, rel=1e-3)  # the run's validation: of learned tokens alone
    with pytest.raises(ConfigError, match="bigram"):
        bigram = str(data / "train_messages.bin")
        likelihood.run(EvaluateConfig(checkpoint=str(tmp_path / "whole"), bigram=bigram))
    train(tmp_path / "half", data, "step_scheduler.max_steps=2")
    again, _ = train(tmp_path / "half", data)
    assert losses(again) == whole


def test_micro_batches_without_a_label_are_safe(data, tmp_path) -> None:
    """Rows that are cut before the assistant speaks teach nothing."""
    options = ["packed_sequence.packed_sequence_size=0", "step_scheduler.local_batch_size=1"]
    records, _ = train(tmp_path / "run", data, *options, "dataset.max_tokens=70", "validation_dataset.max_tokens=70")
    found = losses(records)
    assert len(found) == 4 and all(0 < loss < 7 for loss in found.values())
    nothing, _ = train(tmp_path / "none", data, *options, "dataset.max_tokens=8", "step_scheduler.val_every_steps=null")
    assert list(losses(nothing).values()) == [0, 0, 0, 0]


def test_validation_by_task(tmp_path) -> None:
    data = make(tmp_path / "out", mixture=task_mixture(tmp_path / "in"))
    target = "automodel_cli.data.chat_dataset.ChatDataset"
    tasks = {"talk": "val_smoltalk", "choice": "val_mmlu_auxiliary"}
    sections = [
        f"validation_dataset_{name}={{_target_: {target}, file_pattern: {data}/{file}.bin, max_tokens: 256}}"
        for name, file in tasks.items()
    ]
    records, _ = train(tmp_path / "run", data, "step_scheduler.max_steps=2", *sections)
    names = {one.get("dataset", one.get("name")) for one in records if one["kind"] == "val"}
    assert names == {"default", *tasks}
