"""Scoring a checkpoint from disk: the numbers, the report, the checks of data against model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tests.token_files import write_token_file

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.scoring.data import validation_data
from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf.export import save_hf
from automodel_cli.config.schema.results import EvaluateConfig
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.corpus.tokenizer import CharTokenizer
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.errors import CheckpointError, ConfigError, DataError
from automodel_cli.evaluation.bigram import bigram_loss
from automodel_cli.recipes.evaluation import likelihood as evaluate


def tokens_of(path) -> np.ndarray:
    file = inspect_token_file(path)
    return np.fromfile(path, dtype=file.dtype, offset=file.offset_bytes).astype(np.int64)


@torch.no_grad()
def plain_loss(model, tokens, seq_len) -> tuple[float, int]:
    """Mean nll over all whole windows, by torch's own cross-entropy, one window at a time."""
    model.eval()
    windows = (len(tokens) - 1) // seq_len
    nll = 0.0
    for start in range(0, windows * seq_len, seq_len):
        ids = torch.from_numpy(tokens[start : start + seq_len + 1])
        logits = model(Batch(ids[None, :-1]))[0].double()
        nll += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
    return nll / (windows * seq_len), windows * seq_len


def swap_two_ids(tokenizer_json: str) -> str:
    """Another vocabulary of the same size."""
    body = json.loads(tokenizer_json)
    vocab = body["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    return json.dumps(body)


def score(tiny_run, tmp_path, **settings):
    given = {"checkpoint": str(tiny_run.run), "data": (str(tiny_run.val),), "device": "cpu"}
    cfg = EvaluateConfig(**{**given, "precision": "fp32", "output": str(tmp_path / "results.json"), **settings})
    return evaluate.run(cfg)


class TestNumbers:
    def test_against_a_recomputation(self, tiny_run, tmp_path):
        result = score(tiny_run, tmp_path, batch_size=4)
        loss, count = plain_loss(tiny_run.model, tokens_of(tiny_run.val), 16)
        assert result.results["loss"] == pytest.approx(loss, rel=1e-5)
        assert result.results["tokens"] == result.results["bytes"] == count  # one byte a token, no special ones
        assert result.results["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-5)
        assert result.results["settings"]["seq_len"] == 16  # as the run was trained

    def test_several_sets_are_scored_alone_and_together(self, tiny_run, tmp_path):
        other = tmp_path / "other.bin"
        write_token_file(other, tokens_of(tiny_run.val)[:200])
        found = score(tiny_run, tmp_path, data=(str(tiny_run.val), str(other)), seq_len=8).results
        losses = [plain_loss(tiny_run.model, tokens_of(path), 8) for path in (tiny_run.val, other)]
        assert [s["loss"] for s in found["sets"]] == pytest.approx([loss for loss, _ in losses], rel=1e-5)
        both = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
        assert found["loss"] == pytest.approx(both, rel=1e-5)
        assert found["tokens"] == sum(count for _, count in losses)

    def test_bigram_sees_the_same_tokens(self, tiny_run, tmp_path):
        settings = {"bigram": str(tiny_run.corpus / "dataset.bin"), "batch_size": 2, "limit_batches": 3}
        found = score(tiny_run, tmp_path, **settings).results
        held_out = tokens_of(tiny_run.val)[: 2 * 3 * 16 + 1]
        train = tokens_of(tiny_run.corpus / "dataset.bin")
        train = train[: (len(train) - 1) // 16 * 16 + 1]
        expected = bigram_loss([train], [held_out], vocab_size=257)
        assert found["bigram"]["tokens"] == found["tokens"] == 96
        assert found["bigram"]["loss"] == pytest.approx(expected.loss)

    def test_runs_of_tokens_stop_at_shards(self, tmp_path):
        for number in (1, 2):
            write_token_file(tmp_path / f"{number}.bin", np.arange(30) + 100 * number)
        dataset = NanogptDataset(str(tmp_path / "*.bin"), 8)
        runs = [run.tolist() for run in evaluate.token_runs(dataset)]
        assert runs == [list(range(100, 125)), list(range(200, 225))]
        assert [run.tolist() for run in evaluate.token_runs(dataset, 1)] == [list(range(100, 109))]


class TestDocumentsApart:
    def test_a_run_is_scored_as_it_was_trained(self, tiny_training, tmp_path):
        """The loss of ``eval`` is the run's own validation loss, and not that of attention across documents."""
        apart = {"seq_len": 32, "intra_document": True, "bos_token": 7}
        apart["_target_"] = "automodel_cli.data.nanogpt_dataset.NanogptDataset"
        run = tiny_training.recipe(
            dataset={**apart, "file_pattern": str(tiny_training.data / "train.bin"), "shuffle_files": True},
            validation_dataset={**apart, "file_pattern": str(tiny_training.data / "val.bin")},
            step_scheduler={"max_steps": 30},
            precision="fp32",
        )
        result = run.run_train_validation_loop()

        def scored(**settings):
            output = str(tmp_path / "results.json")
            settings |= {"checkpoint": str(result.checkpoint), "device": "cpu", "output": output}
            return evaluate.run(EvaluateConfig(precision="fp32", **settings)).results

        as_trained = scored()
        assert as_trained["loss"] == pytest.approx(result.val_losses["default"], abs=1e-6)
        assert as_trained["settings"]["intra_document"] is True
        named = scored(data=(str(tiny_training.data / "val.bin"),))
        assert named["loss"] == as_trained["loss"]
        across = scored(intra_document=False)
        assert abs(across["loss"] - as_trained["loss"]) > 1e-4
        assert across["settings"]["intra_document"] is False


class TestReport:
    def test_file_says_what_was_scored_how(self, tiny_run, tmp_path):
        progress = []
        cfg = EvaluateConfig(
            checkpoint=str(tiny_run.run / "step_00000007"),
            data=(str(tiny_run.val),),
            output=str(tmp_path / "deep" / "scores.json"),
            batch_size=8,
            device="cpu",
        )
        result = evaluate.run(cfg, reporter=Reporter(progress=lambda *step: progress.append(step)))
        stored = json.loads((tmp_path / "deep" / "scores.json").read_text(encoding="utf-8"))
        assert stored == result.results
        manifest = json.loads((tiny_run.run / "step_00000007" / "manifest.json").read_text(encoding="utf-8"))
        assert stored["checkpoint"]["fingerprint"] == manifest["self"]
        assert stored["checkpoint"]["step"] == 7
        (data,) = stored["sets"]
        assert data["split"] == "val" and data["files"] == ["val.bin"] and data["fingerprint"]
        assert stored["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        assert stored["seconds"] > 0
        windows = (500 - 1) // 16
        batches = -(-windows // 8)
        assert progress == [(n, batches, str(tiny_run.val)) for n in range(1, batches + 1)]

    def test_a_broken_model_leaves_valid_json(self, tiny_run, tmp_path, monkeypatch):
        loaded = evaluate.load_model(str(tiny_run.run))
        with torch.no_grad():
            next(loaded.model.parameters()).fill_(math.nan)
        monkeypatch.setattr(evaluate, "load_model", lambda *_, **__: loaded)
        path = score(tiny_run, tmp_path).output
        stored = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        assert stored["loss"] is None and stored["nonfinite"]["loss"] == "nan"
        assert stored["sets"][0]["nonfinite"]["loss"] == "nan"


class TestWhatToScore:
    def test_no_data_means_what_the_run_validated_on(self, tiny_run, tmp_path):
        found = score(tiny_run, tmp_path, data=()).results
        assert [s["data"] for s in found["sets"]] == [str(tiny_run.val)]

    def test_no_validation_set_means_the_split_of_the_corpus(self, tiny_run):
        pattern = str(tiny_run.corpus / "dataset.bin")
        for name in (pattern, str(tiny_run.corpus), str(tiny_run.corpus / "data*.bin")):
            assert validation_data({"dataset": {"file_pattern": name}}) == (str(tiny_run.val),)

    def test_a_corpus_folder_means_its_validation_split(self, tiny_run, tmp_path):
        found = score(tiny_run, tmp_path, data=(str(tiny_run.corpus),)).results
        assert found["sets"][0]["files"] == ["val.bin"]

    @pytest.mark.parametrize("config", [{}, {"dataset": {"file_pattern": "gone/*.bin"}}, {"dataset": 3}])
    def test_nothing_known(self, config):
        with pytest.raises(ConfigError, match="no --data"):
            validation_data(config)

    def test_named_validation_sets(self, tiny_run):
        sets = {"validation_dataset_a": {"file_pattern": [str(tiny_run.val)]}, "validation_datasets": 1}
        assert validation_data(sets) == (str(tiny_run.val),)


class TestChecks:
    def test_tokens_beyond_the_vocabulary(self, tiny_run, tmp_path):
        path = tmp_path / "big.bin"
        write_token_file(path, np.array([1, 2, 50_000] * 50))
        with pytest.raises(DataError, match="50,000"):
            score(tiny_run, tmp_path, data=(str(path),))

    def test_another_tokenizer_of_the_same_size(self, tiny_run, tmp_path, monkeypatch):
        loaded = evaluate.load_model(str(tiny_run.run))
        facts = {**loaded.facts, "tokenizer": {"name": "other", "fingerprint": "xxh3:0000000000000000"}}
        changed = evaluate.LoadedModel(loaded.model, loaded.tokenizer, loaded.path, facts)
        monkeypatch.setattr(evaluate, "load_model", lambda *_, **__: changed)
        with pytest.raises(DataError, match="tokenized with byte"):
            score(tiny_run, tmp_path)

    def test_a_foreign_folder_with_the_same_ids_in_other_files(self, tiny_run, tmp_path):
        """As GPT-2's vocabulary, which tiktoken and Hugging Face store in different files."""
        folder = save_hf(tiny_run.model, tmp_path / "hf", tiny_run.corpus / "tokenizer")
        (folder / "automodel_tokenizer.json").unlink()
        result = score(tiny_run, tmp_path, checkpoint=str(folder), seq_len=16)
        assert result.results["loss"] == pytest.approx(score(tiny_run, tmp_path).results["loss"], rel=1e-5)
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        (folder / "tokenizer.json").write_text(swap_two_ids(text), encoding="utf-8")
        with pytest.raises(DataError, match="was tokenized with byte"):
            score(tiny_run, tmp_path, checkpoint=str(folder), seq_len=16)

    def test_windows_longer_than_the_context(self, tiny_run, tmp_path):
        with pytest.raises(ConfigError, match="context of 32"):
            score(tiny_run, tmp_path, seq_len=64)

    def test_a_tokenizer_with_too_few_ids(self, tiny_run, tmp_path):
        CharTokenizer("abc").save(tmp_path / "chars")
        with pytest.raises(DataError, match="3 ids"):
            score(tiny_run, tmp_path, tokenizer=str(tmp_path / "chars"))

    def test_no_checkpoint(self, tmp_path):
        with pytest.raises(CheckpointError):
            evaluate.run(EvaluateConfig(checkpoint=str(tmp_path / "nothing"), data=("x",), device="cpu"))
