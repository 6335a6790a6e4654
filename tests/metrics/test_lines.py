"""The console's lines: the classic one to the letter, the compact one at every width."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from automodel_cli.metrics.lines import CLASSIC, compact

SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"
SEED_RECORD = {
    "step": 1,
    "epoch": 0,
    "loss": 10.9521,
    "grad_norm": 12.9375,
    "lr": 6.08e-05,
    "mem_gib": 38.39,
    "tps": 132005.57,
    "tps_per_gpu": 66002.79,
    "num_label_tokens": 524288,
}
FULL = {**SEED_RECORD, "step": 12345, "epoch": 3, "loss_avg": 9.9521, "mfu": 0.401, "eta_s": 183_845.0}


class TestTrainLine:
    def test_is_the_line_users_scrape(self):
        assert CLASSIC.train({**SEED_RECORD, "mfu": 0.401, "eta_s": 5025.4}) == (
            "step 1 | epoch 0 | loss 10.9521 | grad_norm 12.9375 | lr 6.08e-05 | mem 38.39 GiB"
            " | tps 132005.57(66002.79/gpu) | num_label_tokens 524288 | mfu 40.1% | eta 1:23:45"
        )

    def test_unknown_values_are_named_so(self):
        line = CLASSIC.train({**SEED_RECORD, "grad_norm": None, "mfu": None})
        assert line.endswith("| num_label_tokens 524288 | mfu n/a | eta n/a")
        assert "| grad_norm n/a |" in line

    def test_a_common_scraper_reads_it(self):
        found = re.search(r"\| loss ([\d.]+) \| grad_norm ([\d.]+) \| lr (\S+) \|", CLASSIC.train(SEED_RECORD))
        assert found and [float(text) for text in found.groups()] == [10.9521, 12.9375, 6.08e-05]

    def test_losses_by_source_come_last(self):
        line = CLASSIC.train({**SEED_RECORD, "weighted": 2.5, "loss_by_source": {"web": 3.21049, "code": 2.9}})
        assert line.endswith("| weighted 2.5000 | web 3.210 code 2.900")

    def test_a_skipped_step_says_so(self):
        line = CLASSIC.train({**SEED_RECORD, "loss": math.nan, "skipped": True})
        assert "| loss nan |" in line and line.endswith("| skipped (not finite)")

    def test_is_the_line_of_the_guides_log(self):
        if not SEEDS.is_dir():
            pytest.skip("the users' guides are not here (../shared/seeds)")
        documented = [
            line.partition("root | ")[2]
            for path in sorted(SEEDS.glob("*.txt"))
            for line in path.read_text().splitlines()
            if "root | step " in line
        ]
        for line in documented:
            tps, per_gpu = re.search(r"tps ([\d.]+)\(([\d.]+)/gpu\)", line).groups()
            words = dict(field.split()[:2] for field in line.split(" | "))
            numbers = {name: float(words[name]) for name in ("loss", "grad_norm", "lr")}
            counts = {name: int(words[name]) for name in ("step", "epoch", "num_label_tokens")}
            record = {"mem_gib": float(words["mem"]), "tps": float(tps), "tps_per_gpu": float(per_gpu)}
            assert CLASSIC.train({**record, **numbers, **counts}).startswith(line)
        assert documented


class TestCompactLine:
    def test_shows_what_means_something_here(self):
        lines = compact(total_steps=500)
        on_a_cpu = {**SEED_RECORD, "mfu": None, "eta_s": 5025.4, "tps_per_gpu": 132005.57}
        assert lines.train(on_a_cpu) == (
            "step 1/500   | loss 10.9521 | lr 6.08e-05 | grad  12.9 | 132.0K tok/s | mem 38.39 GiB | eta 1:23:45"
        )
        skipped = lines.train({**SEED_RECORD, "loss": math.nan, "grad_norm": math.inf, "skipped": True})
        assert "loss     nan" in skipped and skipped.endswith("skipped (not finite)") and "n/a" not in skipped
        gpus = compact(total_steps=500, per_gpu=True).train({**SEED_RECORD, "mfu": 0.401})
        assert "132.0K tok/s |  66.0K/gpu | mfu 40.1%" in gpus

    @pytest.mark.parametrize("total_steps", [20, 18_500, 1_000_000])
    def test_fits_and_leaves_whole_fields_out(self, total_steps):
        """The least important ones first; what is left is what a wide terminal shows, to the letter."""
        fields = {
            width: compact(total_steps=total_steps, per_gpu=True, width=lambda width=width: width)
            .train(FULL)
            .split(" | ")
            for width in (40, 60, 80, 100, 120, 1000)
        }
        for narrow, wide in zip(list(fields)[:-1], list(fields)[1:], strict=True):
            assert len(" | ".join(fields[narrow])) <= narrow
            assert [field for field in fields[wide] if field in fields[narrow]] == fields[narrow]
        assert {field.split()[0] for field in fields[60]} >= {"step", "loss", "eta"}
        assert len(fields[1000]) == 11

    def test_columns_stay_where_they_are(self):
        small = {
            **FULL,
            "step": 1,
            "loss": 0.9,
            "loss_avg": 0.9,
            "grad_norm": 0.031,
            "tps": 950.0,
            "mem_gib": 0.4,
        }
        lines = [compact(total_steps=20_000, width=lambda: 200).train(record) for record in (FULL, small)]
        for name in ("loss", "avg", "lr", "grad", "tok/s", "mfu", "mem", "epoch", "eta"):
            assert len({line.index(name) for line in lines}) == 1, name

    def test_of_a_validation_and_of_tasks(self):
        lines = compact(total_steps=20, width=lambda: 80)
        record = {"step": 10, "name": "code", "loss": 2.0, "perplexity": 7.389, "bits_per_byte": None}
        assert lines.val({**record, "best": True}) == "[val code] step 10/20 | loss 2.0000 | ppl 7.39 | best so far"
        assert lines.val({**record, "name": "default"}) == "[val] step 10/20 | loss 2.0000 | ppl 7.39"
        tasks = {"step": 8, "evaluated_tasks": 3, "core": 0.125, "core_tasks": 2, "seconds": 1.25}
        assert lines.eval(tasks) == "[eval] step 8/20 | core 0.1250 over 2 tasks | 3 tasks in 1.2 s"
        assert lines.eval({**tasks, "core": None}) == "[eval] step 8/20 | 3 tasks in 1.2 s"


def test_val_line():
    record = {"step": 10, "epoch": 1, "name": "code", "loss": 2.0, "perplexity": 7.389, "bits_per_byte": 0.9}
    assert CLASSIC.val({**record, "tokens": 5, "best": True}) == (
        '[val] name "code" | step 10 | epoch 1 | loss 2.0000 | ppl 7.39 | bpb 0.9000 | num_label_tokens 5 | best so far'
    )


def test_losses_of_few_sources_are_on_the_line():
    """Of more than four it has no room: it keeps the rest."""
    record = {**SEED_RECORD, "loss_by_source": {"web": 3.21049, "code": 2.9}}
    assert "| loss 10.9521 | web 3.210 code 2.900 | lr" in compact(total_steps=10).train(record)
    many = {**SEED_RECORD, "loss_by_source": {f"source {number}": 3.0 for number in range(5)}}
    assert compact(total_steps=10).train(many) == compact(total_steps=10).train(SEED_RECORD)
    held_out = compact(total_steps=10).val({"step": 5, "loss": 3.0, "loss_by_source": {"web": 3.25, "code": 2.5}})
    assert held_out == "[val] step 5/10 | loss 3.0000 | web 3.250 code 2.500"
