"""The pretraining recipe as an object: what it logs, saves, skips, refuses, and takes from elsewhere."""

import dataclasses
import gzip
import json
import math
import re

import pytest
import torch
import transformers

from automodel_cli.checkpoint import layout
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.errors import AutomodelError, CheckpointError, ConfigError, DataError
from automodel_cli.recipes import pretrain
from automodel_cli.recipes.preprocess import nanogpt as preprocess
from automodel_cli.recipes.pretrain import TrainFinetuneRecipeForNextTokenPrediction
from automodel_cli.recipes.pretraining.progress import Progress
from automodel_cli.train.step import StepMetrics

LINE = re.compile(
    r"step \d+/12 * \| loss +\d+\.\d{4} \| lr \d\.\d\de[+-]\d\d \| grad +[\d.]+ "
    r"\| +[\d,.K]+ tok/s \| mem +\d+\.\d\d GiB( \| epoch \d+)?( \| eta \d+:\d\d:\d\d)?"
)
CLASSIC_LINE = re.compile(
    r"step \d+ \| epoch \d+ \| loss \d+\.\d{4} \| grad_norm \d+\.\d{4} \| lr \d\.\d\de[+-]\d\d \| mem \d+\.\d\d GiB "
    r"\| tps \d+\.\d\d\(\d+\.\d\d/gpu\) \| num_label_tokens \d+ \| mfu n/a \| eta (n/a|\d+:\d\d:\d\d)"
)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_loss_goes_down_and_every_step_has_its_line(tiny_training):
    recipe = tiny_training.recipe()
    result = recipe.run_train_validation_loop()
    lines = [line for line in recipe.said if line.startswith("step ")]
    assert len(lines) == 12
    assert all(LINE.fullmatch(line) for line in lines), lines[0]
    losses = tiny_training.losses()
    assert list(losses) == list(range(1, 13))
    assert losses[12] < losses[1] - 0.5
    assert result.exit_code == 0
    assert result.checkpoint.name == "step_00000012"


def test_the_classic_line_and_the_same_records(tiny_training):
    """The format changes what is printed, not what is stored: the fields of the guides' log are in both."""
    recipe = tiny_training.recipe("--logging.format=classic")
    recipe.run_train_validation_loop()
    lines = [line for line in recipe.said if line.startswith("step ")]
    assert len(lines) == 12 and all(CLASSIC_LINE.fullmatch(line) for line in lines), lines[0]
    fields = {"step", "epoch", "loss", "grad_norm", "lr", "mem_gib", "tps", "tps_per_gpu", "num_label_tokens"}
    assert all(fields <= set(record) for record in tiny_training.records())


def test_schedule_and_logged_rate_agree(tiny_training):
    recipe = tiny_training.recipe()
    recipe.run_train_validation_loop()
    assert [record["lr"] for record in tiny_training.records()] == [recipe.schedule.lr(done) for done in range(12)]


def test_run_folder_layout(tiny_training):
    tiny_training.recipe().run_train_validation_loop()
    run = tiny_training.run
    assert {"config.yaml", "metrics.jsonl", "LATEST", "BEST"} <= {path.name for path in run.iterdir()}
    step = run / "step_00000012"
    assert {"model", "optim", "state.json", "loader.json", "config.yaml", "manifest.json"} <= {
        path.name for path in step.iterdir()
    }
    facts = json.loads((step / "manifest.json").read_text())["facts"]
    assert facts["precision"]["stored"] == "float32"
    assert facts["fast_path"]["precision"] in ("bf16", "fp32")


def test_final_export_loads_in_transformers_with_the_same_logits(tiny_training):
    recipe = tiny_training.recipe("--precision", "fp32")
    recipe.run_train_validation_loop()
    exported = transformers.GPT2LMHeadModel.from_pretrained(tiny_training.run / "step_00000012" / "hf").eval()
    ids = torch.arange(32)[None] % 64
    from automodel_cli.batch import Batch

    with torch.no_grad():
        ours = recipe.model.eval()(Batch(ids))
        torch.testing.assert_close(ours, exported(ids).logits, atol=1e-5, rtol=1e-5)


def test_best_is_the_lowest_validation_loss_of_those_saved(tiny_training):
    recipe = tiny_training.recipe("--optimizer.lr", "0.5", "--step_scheduler.ckpt_every_steps", "3")
    recipe.run_train_validation_loop()
    scores = {}
    for step in layout.list_steps(tiny_training.run):
        manifest = layout.read_step_manifest(layout.step_folder(tiny_training.run, step))
        scores[step] = manifest["metrics"]["val_loss"]["default"]
    assert layout.resolve(tiny_training.run, "BEST").name == layout.step_name(min(scores, key=scores.get))


def test_keep_last_and_best_survive(tiny_training):
    recipe = tiny_training.recipe("--checkpoint.keep_last", "1", "--step_scheduler.ckpt_every_steps", "2")
    recipe.run_train_validation_loop()
    kept = {layout.resolve(tiny_training.run, name).name for name in ("LATEST", "BEST")}
    assert {layout.step_name(step) for step in layout.list_steps(tiny_training.run)} == kept


def test_several_validation_sets_are_named(tiny_training):
    other = {
        "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
        "file_pattern": str(tiny_training.data / "train.bin"),
        "seq_len": 32,
    }
    recipe = tiny_training.recipe("--step_scheduler.limit_val_batches", "2", validation_dataset_other=other)
    recipe.run_train_validation_loop()
    records = tiny_training.records("val")
    assert {record["name"] for record in records} == {"default", "other"}
    assert all(record["tokens"] == 2 * 4 * 32 for record in records)


def test_validation_leaves_training_alone(tiny_training):
    tiny_training.recipe("--step_scheduler.val_every_steps", "1").run_train_validation_loop()
    often = tiny_training.losses()
    assert {r["step"] for r in tiny_training.records("val")} == set(range(13))
    recipe = tiny_training.recipe(
        "--checkpoint.checkpoint_dir",
        str(tiny_training.folder / "other"),
        "--step_scheduler.val_every_steps",
        "null",
        "--step_scheduler.validate_on_checkpoint",
        "false",
    )
    recipe.run_train_validation_loop()
    lines = (tiny_training.folder / "other" / "metrics.jsonl").read_text().splitlines()
    records = list(map(json.loads, lines))
    assert {r["step"]: r["loss"] for r in records if r["kind"] == "train"} == often
    assert not [r for r in records if r["kind"] == "val"]


def test_an_untrained_model_is_validated_first_and_only_then(tiny_training):
    """Its loss is that of a guess among the 64 ids; a resume and a run that asks for none have no such record."""
    quiet = ("--step_scheduler.max_steps", "4", "--step_scheduler.val_on_start=false")
    tiny_training.recipe(*quiet).run_train_validation_loop()
    without, weights = tiny_training.losses(), tiny_training.weights(4)
    assert [record["step"] for record in tiny_training.records("val")] == [4]
    recipe = tiny_training.recipe("--step_scheduler.max_steps", "4", fresh=True)
    recipe.run_train_validation_loop()
    first, last = tiny_training.records("val")
    assert (first["step"], first["best"], last["step"]) == (0, False, 4)
    assert first["loss"] == pytest.approx(math.log(64), abs=0.2)
    assert any(line.startswith("[val] step 0/4 | loss 4.0") for line in recipe.said)
    assert tiny_training.losses() == without and tiny_training.weights(4) == weights
    tiny_training.recipe("--step_scheduler.max_steps", "6").run_train_validation_loop()
    assert [record["step"] for record in tiny_training.records("val")] == [0, 4, 6]


def test_a_z_loss_changes_the_weights_and_not_what_is_logged(tiny_training):
    """The first update and the validation before it are of the same weights."""
    logged = {}
    for weight in (0.0, 0.1):
        recipe = tiny_training.recipe("--loss_fn.z_loss_weight", str(weight), "step_scheduler.max_steps=2", fresh=True)
        recipe.run_train_validation_loop()
        logged[weight] = tiny_training.records("val")[0]["loss"], tiny_training.losses()
    (val, losses), (z_val, z_losses) = logged.values()
    assert (z_val, z_losses[1]) == (val, losses[1])
    assert z_losses[2] != losses[2]


def test_not_finite_updates_are_skipped_counted_and_end_the_run(tiny_training, monkeypatch):
    recipe = tiny_training.recipe("--step_scheduler.max_skipped_steps", "3", "--step_scheduler.val_on_start=false")
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    honest = recipe.head_loss

    def poisoned(*args, **kwargs):
        return honest(*args, **kwargs) * math.nan

    recipe.run = dataclasses.replace(recipe.run, head_loss=poisoned)
    with pytest.raises(AutomodelError, match="last 3 updates was not finite") as caught:
        recipe.run_train_validation_loop()
    assert "there is no checkpoint yet" in caught.value.hint
    assert recipe.state.skipped_steps == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in recipe.model.state_dict().items())


def test_the_last_good_checkpoint_is_named(tiny_training):
    recipe = tiny_training.recipe("--step_scheduler.max_skipped_steps", "2")
    honest, seen = recipe.head_loss, []

    def poisoned_later(*args, **kwargs):
        seen.append(1)
        return honest(*args, **kwargs) * (math.nan if recipe.state.step >= 5 else 1.0)

    recipe.run = dataclasses.replace(recipe.run, head_loss=poisoned_later)
    with pytest.raises(AutomodelError) as caught:
        recipe.run_train_validation_loop()
    assert "step_00000004" in caught.value.hint


def _diverging(recipe, after, until=10**9):
    """The loss of updates ``after`` + 1 to ``until`` is no number."""
    honest = recipe.head_loss

    def head_loss(*args, **kwargs):
        odd = after <= recipe.state.step < until and recipe.model.training
        return honest(*args, **kwargs) * (math.nan if odd else 1.0)

    recipe.run = dataclasses.replace(recipe.run, head_loss=head_loss)
    return recipe


_SHORT = (
    "--checkpoint.keep_last",
    "1",
    "--step_scheduler.ckpt_every_steps",
    "2",
    "--validation_dataset",
    "null",
)


@pytest.mark.parametrize("is_async", ["false", "true"])
def test_a_run_that_blows_up_keeps_the_checkpoint_to_go_back_to(tiny_training, is_async):
    words = (*_SHORT, "--checkpoint.is_async", is_async, "--step_scheduler.max_skipped_steps", "4")
    with pytest.raises(AutomodelError, match="stopped at step 8") as caught:
        _diverging(tiny_training.recipe(*words), after=4).run_train_validation_loop()
    assert "step_00000002" in caught.value.hint  # 4 was saved, and no finite loss came after it
    assert layout.list_steps(tiny_training.run) == [2, 4]
    assert layout.resolve(tiny_training.run).name == "step_00000002"
    recipe = tiny_training.recipe(*words)
    assert recipe.state.step == 2
    recipe.run_train_validation_loop()
    assert sorted(tiny_training.losses()) == list(range(1, 13))


def test_a_save_that_could_not_be_made_is_made_up_for(tiny_training):
    recipe = _diverging(tiny_training.recipe(*_SHORT), after=5, until=6)
    recipe.run_train_validation_loop()
    assert "step 6 is not saved: the loss is not finite" in recipe.said
    assert [line.split()[1].rpartition("/")[2] for line in recipe.said if line.startswith("saved ")] == [
        f"step_{step:08d}" for step in (2, 4, 7, 8, 10, 12)
    ]


def test_a_save_that_is_owed_does_not_have_every_update_validated(tiny_training, monkeypatch):
    words = ("--step_scheduler.ckpt_every_steps", "4", "--step_scheduler.val_every_steps", "null")
    recipe = _diverging(tiny_training.recipe(*words), after=3, until=8)
    validated, honest = [], Progress.validate
    monkeypatch.setattr(Progress, "validate", lambda self: (validated.append(recipe.state.step), honest(self))[1])
    recipe.run_train_validation_loop()
    assert validated == [4, 8, 9, 12]


def test_a_signal_to_one_rank_after_all_agreed_to_go_on_changes_nothing(tiny_training):
    recipe = tiny_training.recipe(*_SHORT)
    progress = Progress.begin(recipe.run)
    progress.soundness.latest = StepMetrics(loss=1.0, num_label_tokens=1, grad_norm=math.inf, skipped=True)
    recipe.stop.name = "SIGTERM"  # has come to this rank alone: the others wait for the next update
    assert not progress.may_save(stopping=False) and progress.soundness.owed
    assert progress.may_save(stopping=True)


def test_poisoned_weights_are_not_saved_whatever_the_loss_says(tiny_training):
    recipe = tiny_training.recipe(*_SHORT, "--step_scheduler.max_steps", "4")
    honest = recipe.optimizer.step

    def step(*args, **kwargs):
        honest(*args, **kwargs)
        if recipe.state.step == 3:
            with torch.no_grad():
                recipe.model.wpe.weight[0, 0] = math.inf

    recipe.optimizer.step = step
    with pytest.raises(AutomodelError, match="ended at step 4 without a checkpoint"):
        recipe.run_train_validation_loop()
    assert "step 4 is not saved: the weights hold NaN or infinity" in recipe.said
    assert layout.list_steps(tiny_training.run) == [2]


def test_a_signal_while_the_loss_is_no_number_goes_back_too(tiny_training):
    recipe = _diverging(tiny_training.recipe(*_SHORT), after=4)

    def signalled(step):
        recipe.stop.name = "SIGTERM" if step == 6 else None

    recipe.heartbeat.beat = signalled
    result = recipe.run_train_validation_loop()
    assert result.exit_code == 75 and result.step == 6
    assert layout.resolve(tiny_training.run).name == "step_00000002"


def test_resume_prints_what_the_configuration_changed(tiny_training):
    tiny_training.recipe("--step_scheduler.max_steps", "4").run_train_validation_loop()
    words = ("--optimizer.lr", "0.002", "--optimizer.betas", "[0.8, 0.99]", "--optimizer.weight_decay", "0.0")
    words += ("--model.dropout", "0.0", "--clip_grad_norm", "null", "--validation_dataset", "null")
    recipe = tiny_training.recipe(*words, loss_fn={"_target_": "torch.nn.CrossEntropyLoss"})
    said = "\n".join(recipe.said)
    for change in (
        "schedule.max_lr: 0.01 -> 0.002", "optimizer.lr: 0.01 -> 0.002", "betas is now (0.8, 0.99), was (0.9, 0.95)",
        "weight_decay is now 0.0, was 0.1", "model.dropout: 0.1 -> 0.0", "clip_grad_norm.max_norm: 1.0 -> not set",
        "validation_dataset: NanogptDataset -> not set", "loss_fn: not set -> CrossEntropyLoss",
        "step_scheduler.max_steps: 4 -> 12",
    ):  # fmt: skip
        assert change in said, (change, said)
    assert "optimizer.betas" not in said and "checkpoint_dir" not in said
    recipe.run_train_validation_loop()
    assert tiny_training.records()[-1]["step"] == 12


def test_restore_from_an_earlier_step_and_from_nowhere(tiny_training):
    tiny_training.recipe().run_train_validation_loop()
    whole = tiny_training.losses()
    recipe = tiny_training.recipe("--checkpoint.restore_from", "step_00000004")
    assert recipe.state.step == 4
    recipe.run_train_validation_loop()
    assert tiny_training.losses() == whole
    with pytest.raises(CheckpointError, match="step_00000099"):
        tiny_training.recipe("--checkpoint.restore_from", "step_00000099")


def test_the_guides_recipe_object(tiny_training):
    assert TrainFinetuneRecipeForNextTokenPrediction is pretrain.PretrainRecipe
    recipe = tiny_training.recipe()
    recipe.run_train_validation_loop()
    recipe.load_checkpoint("step_00000008")
    assert recipe.state.step == 8


def test_init_from_takes_weights_only(tiny_training):
    first = tiny_training.recipe()
    first.run_train_validation_loop()
    for source in (tiny_training.run, tiny_training.run / "step_00000012" / "hf"):
        target = str(tiny_training.folder / f"tuned-{source.name}")
        recipe = tiny_training.recipe("--init_from", str(source), "--checkpoint.checkpoint_dir", target)
        assert recipe.state.step == 0
        for name, tensor in first.model.state_dict().items():
            logical = tensor[:64] if "wte" in name or "lm_head" in name else tensor
            assert torch.equal(recipe.model.state_dict()[name][: len(logical)], logical), name


def test_init_from_another_shape_says_so(tiny_training):
    tiny_training.recipe("--step_scheduler.max_steps", "1").run_train_validation_loop()
    with pytest.raises(CheckpointError, match=r"shape|fit"):
        tiny_training.recipe(
            "--init_from",
            str(tiny_training.run),
            "--model.n_layer",
            "3",
            "--checkpoint.checkpoint_dir",
            str(tiny_training.folder / "b"),
        )


def test_a_vocabulary_that_is_too_small_is_refused_before_training(tiny_training):
    with pytest.raises(DataError, match="vocab"):
        tiny_training.recipe("--model.vocab_size", "32")


def test_windows_longer_than_the_context_are_refused(tiny_training):
    with pytest.raises(ConfigError, match="n_positions"):
        tiny_training.recipe("--dataset.seq_len", "64")


USER_CODE = """
import torch
class Counting(torch.utils.data.Dataset):
    def __init__(self, rows=64):
        self.rows = rows
    def __len__(self):
        return self.rows
    def __getitem__(self, index):
        ids = (torch.arange(17) + index) % 64
        return {"input_ids": ids[:-1], "labels": ids[1:]}

class Tiny(torch.nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embed = torch.nn.Embedding(64, width)
        self.head = torch.nn.Linear(width, 64)
    def forward(self, input_ids):
        return self.head(self.embed(input_ids))
"""


def test_a_users_own_dataset_and_model(tiny_training):
    code = tiny_training.folder / "mine.py"
    code.write_text(USER_CODE)
    mine = {"model": {"_target_": f"{code}:Tiny"}, "dataset": {"_target_": f"{code}:Counting", "rows": 128}}
    sections = {**mine, "validation_dataset": {"_target_": f"{code}:Counting", "rows": 8}}
    with pytest.raises(ConfigError, match="--trust"):
        tiny_training.recipe(**sections)
    constant = ("--lr_scheduler", "null", "--checkpoint.checkpoint_dir")
    twin = tiny_training.recipe(*constant, str(tiny_training.folder / "twin"), trust=(str(code),), **sections)
    recipe = tiny_training.recipe(*constant, str(tiny_training.run), trust=(str(code),), **sections)
    assert torch.equal(twin.model.module.head.weight, recipe.model.module.head.weight)  # the seed decides
    recipe.run_train_validation_loop()
    losses = tiny_training.losses()
    assert losses[12] < losses[1]
    again = tiny_training.recipe(
        "--lr_scheduler", "null", "--step_scheduler.max_steps", "14", trust=(str(code),), **sections
    )
    assert again.state.step == 12
    again.run_train_validation_loop()


@pytest.mark.parametrize("family", ["GPT2", "Llama", "Qwen2"])
def test_hugging_face_models_from_nested_configs(tiny_training, family):
    common = {"vocab_size": 64, "_target_": f"transformers.{family}Config"}
    if family == "GPT2":
        config = {**common, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
        target = "transformers.GPT2LMHeadModel.from_config"
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = {**common, **sizes, "num_key_value_heads": 1, "max_position_embeddings": 32}
        target = "nemo_AutoModel.NeMoAutoModelForCausalLM.from_config"
    recipe = tiny_training.recipe("--step_scheduler.max_steps", "6", model={"_target_": target, "config": config})
    recipe.run_train_validation_loop()
    losses = tiny_training.losses()
    assert losses[6] < losses[1]
    exported = transformers.AutoModelForCausalLM.from_pretrained(tiny_training.run / "step_00000006" / "hf")
    assert exported.config.vocab_size == 64
    resumed = tiny_training.recipe("--step_scheduler.max_steps", "7", model={"_target_": target, "config": config})
    assert resumed.state.step == 6


def test_wandb_offline(tiny_training, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tiny_training.folder / "wandb-files"
    section = {"project": "p", "name": "n", "save_dir": str(folder)}
    recipe = tiny_training.recipe("--step_scheduler.max_steps", "2", wandb=section)
    recipe.run_train_validation_loop()
    assert list(folder.rglob("*.wandb")), recipe.said


def test_dry_run_plans_and_writes_nothing(tiny_training):
    from automodel_cli.assembly.reporter import Reporter
    from automodel_cli.config.load import load_config
    from automodel_cli.config.schema.pretrain import PretrainConfig

    rows = {}
    reporter = Reporter(table=lambda title, found: rows.update(found))
    code = pretrain.run(load_config(PretrainConfig, tiny_training.config(), []), dry_run=True, reporter=reporter)
    assert code == 0
    assert "12 updates" in rows["length"]
    assert "28,544 parameters" in rows["model"]
    assert not tiny_training.run.exists()


def test_a_loss_of_torch_trains_like_ours(tiny_training):
    other = ("--checkpoint.checkpoint_dir", str(tiny_training.folder / "other"), "--precision", "fp32")
    steps = ("--step_scheduler.max_steps", "3")
    ours = tiny_training.recipe(*steps, "--precision", "fp32")
    ours.run_train_validation_loop()
    theirs = tiny_training.recipe(*steps, *other, loss_fn={"_target_": "torch.nn.CrossEntropyLoss"})
    theirs.run_train_validation_loop()
    lines = (tiny_training.folder / "other" / "metrics.jsonl").read_text().splitlines()
    found = [r["loss"] for r in map(json.loads, lines) if r["kind"] == "train"]
    assert found == pytest.approx(list(tiny_training.losses().values()), abs=1e-5)


def test_ids_of_another_vocabulary_are_refused_for_given_weights(tiny_training, tmp_path):
    """nanoGPT's guide feeds character ids to GPT-2's embedding."""
    folder = tmp_path / "gpt2"
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50257, **shape)).save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    corpus = tmp_path / "chars"
    cfg = load_config(
        PreprocessNanogptConfig,
        None,
        [],
        {"dataset": str(text), "tokenizer": "char", "output_dir": str(corpus)},
    )
    preprocess.run(cfg, progress=lambda _: None, say=lambda _: None)
    with pytest.raises(DataError, match="50,257"):
        tiny_training.recipe(
            *("--init_from", str(folder), "--model.vocab_size", "50257"),
            *("--dataset.file_pattern", str(corpus / "dataset.bin")),
        )


def test_a_profile_changes_no_number(tiny_training):
    """Losses, gradient norms and weights bit for bit; the trace lies in the run folder."""
    tiny_training.recipe().run_train_validation_loop()
    plain = {r["step"]: (r["loss"], r["grad_norm"]) for r in tiny_training.records()}
    weights = tiny_training.weights(12)
    recipe = tiny_training.recipe(fresh=True, profile=4)
    recipe.run_train_validation_loop()
    assert {r["step"]: (r["loss"], r["grad_norm"]) for r in tiny_training.records()} == plain
    assert tiny_training.weights(12) == weights
    (trace,) = (tiny_training.run / "profile").iterdir()
    assert trace.name == "step_00000008_rank0.json.gz"
    headings, *rows = recipe.tables[0]
    assert headings[0] == "phase"
    means = {row[0]: float(row[2]) for row in rows}
    busy = (
        "data wait",
        "forward",
        "backward",
        "gradient norm, clip",
        "optimizer",
        "logging",
        "validation",
        "saving",
    )
    assert all(means[name] > 0 for name in busy), means
    assert sum(means.values()) == pytest.approx(2 * means["an update"], abs=1)
    assert means["the rest"] < means["an update"] / 5


def test_a_profile_without_a_run_folder_is_written_here(tiny_training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_training.recipe("--checkpoint.enabled", "false", profile=100)
    recipe.run_train_validation_loop()
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step_00000012_rank0.json.gz"]
    assert "the run ended after 8 of the 100 updates to profile" in recipe.said


def test_each_of_two_processes_writes_its_trace(tiny_training):
    """The option goes through the launcher; rank 0 tells, once, and training goes on."""
    done = tiny_training.train("--nproc-per-node", "2", "--profile", "3")
    assert done.returncode == 0, done.stderr
    traces = sorted((tiny_training.run / "profile").iterdir())
    assert [path.name for path in traces] == [f"step_00000007_rank{rank}.json.gz" for rank in (0, 1)]
    for path in traces:
        names = [event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
        assert names.count("automodel: optimizer") == 3
        assert names.count("automodel: backward") == 3  # one micro-batch of four rows on each
    assert done.stdout.count("profile of 3 updates, 5 to 7") == 1
    assert max(tiny_training.losses()) == 12


def test_the_local_batch_size_is_chosen_and_shown(tiny_training):
    auto = {"step_scheduler": {"local_batch_size": "auto", "max_steps": 4}}
    recipe = tiny_training.recipe(**auto)
    assert recipe.cfg.step_scheduler.local_rows == 8
    assert any(line.startswith("batch: 8 sequences") and "all that a rank has" in line for line in recipe.said)
    assert any(line.startswith("memory: about ") and " free" in line for line in recipe.said)


def test_auto_resumes_with_the_stored_size(tiny_training):
    tiny_training.recipe(step_scheduler={"local_batch_size": 2, "max_steps": 4}).run_train_validation_loop()
    again = tiny_training.recipe(step_scheduler={"local_batch_size": "auto", "max_steps": 8})
    assert again.cfg.step_scheduler.local_rows == 2
    assert any("as stored with the run" in line for line in again.said)
    assert not any(line.startswith("changed since the checkpoint: batch") for line in again.said)
