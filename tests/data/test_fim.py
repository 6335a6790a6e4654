"""Fill-in-the-middle: what comes out can be put together again, whatever was cut where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples
from tests.token_files import write_token_file

from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.fim import Fim, open_fim
from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import ConfigError, DataError

SEPARATOR, PREFIX, MIDDLE, SUFFIX = 0, 97, 98, 99
MARKS = {"prefix": PREFIX, "middle": MIDDLE, "suffix": SUFFIX}
SECTION = {**MARKS, "separator": SEPARATOR}


def restored(part: list[int]) -> list[int]:
    """The text of a document's part, read from its marks as the paper writes them."""
    if PREFIX not in part:
        return part
    assert part[0] == PREFIX and sorted(set(part) & {PREFIX, MIDDLE, SUFFIX}) == [PREFIX, MIDDLE, SUFFIX]
    suffix, middle = part.index(SUFFIX), part.index(MIDDLE)
    if suffix == 1:  # SPM: the prefix stands before the middle, and nothing says where it ends
        return part[middle + 1 :] + part[2:middle]
    return part[1:suffix] + part[middle + 1 :] + part[suffix + 1 : middle]


def parts(row: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for token in row:
        if token == SEPARATOR:
            found.append([])
        else:
            found[-1].append(token)
    return found


@examples(200)
@given(
    row=st.lists(st.integers(0, 90), min_size=1, max_size=80),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    spm=st.sampled_from([0.0, 0.5, 1.0]),
    sample=st.integers(0, 1 << 40),
)
def test_every_part_keeps_its_text_but_for_three_tokens(row, rate, spm, sample):
    fim, out = Fim(rate, spm, (PREFIX, MIDDLE, SUFFIX), SEPARATOR, seed=3), np.array(row)
    fim.rearrange(out, sample)
    again = np.array(row)
    fim.rearrange(again, sample)
    assert out.tolist() == again.tolist()
    for before, after in zip(parts(row), parts(out.tolist()), strict=True):
        changed = PREFIX in after
        assert len(after) == len(before) and (not changed or rate > 0) and (changed or rate < 1 or len(before) < 6)
        assert restored(after) == (before[:-3] if changed else before)
        assert not changed or (after[1] == SUFFIX) == (spm == 1) or spm == 0.5 or after.index(SUFFIX) == 1


def test_shares_and_cuts_are_those_asked_for():
    fim, text = Fim(0.4, 0.25, (PREFIX, MIDDLE, SUFFIX), SEPARATOR, seed=1), np.arange(1, 31)
    rows = []
    for sample in range(4000):
        rows.append(text.copy())
        fim.rearrange(rows[-1], sample)
    changed = [row.tolist() for row in rows if row[0] == PREFIX]
    assert abs(len(changed) / 4000 - 0.4) < 0.03
    spm = [row for row in changed if row[1] == SUFFIX and row.index(MIDDLE) < 29]
    assert abs(len(spm) / len(changed) - 0.25) < 0.06  # an empty prefix looks like SPM
    lengths = np.array([29 - row.index(MIDDLE) for row in changed if row[1] != SUFFIX])
    assert set(lengths.tolist()) == set(range(27)) and abs(lengths.mean() - 9) < 1  # the middle third of 27


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    rows = np.random.default_rng(0).integers(1, 90, 40 * 16 + 1)
    rows[::11] = SEPARATOR
    write_token_file(tmp_path / "a.bin", rows)
    return str(tmp_path / "a.bin")


def first_updates(dataset, updates: int, done: int = 0) -> list[list[list[int]]]:
    loader = TokenLoader(dataset, global_batch_size=8, local_batch_size=4, num_epochs=None)
    loader.samples_consumed = 8 * done
    read = zip(range(updates), loader, strict=False)
    return [[row for batch in update for row in batch.input_ids.tolist()] for _, update in read]


def test_only_training_is_rearranged_and_another_pass_cuts_elsewhere(tokens):
    plain, fim = NanogptDataset(tokens, 16), NanogptDataset(tokens, 16, fim=SECTION)
    ten = first_updates(fim, 10)
    assert ten != first_updates(plain, 10) and ten[:5] != ten[5:]  # 40 windows: five updates a pass
    assert ten[3:] == first_updates(fim, 7, done=3)
    evaluated = [[batch.input_ids.tolist() for batch in EvalLoader(one, 4)] for one in (plain, fim)]
    assert evaluated[0] == evaluated[1]
    assert "fim" not in plain.plan() and fim.plan()["fim"]["rate"] == 0.5
    assert plain.plan_hash != fim.plan_hash


def test_one_source_of_a_mixture_is_rearranged(tokens, tmp_path):
    write_token_file(tmp_path / "b.bin", np.random.default_rng(1).integers(1, 90, 40 * 16 + 1))
    code = {"file_pattern": tokens, "weight": 1, "fim": {**SECTION, "rate": 1.0}}
    text = {"file_pattern": str(tmp_path / "b.bin"), "weight": 1}
    mixed = Mixture({"code": code, "text": text}, 16)
    numbers = np.arange(64)
    rows = np.empty((64, 17), dtype=np.int64)
    mixed.read_samples(numbers, rows)
    sources, _ = mixed.order(numbers)
    assert [PREFIX in row for row in rows.tolist()] == (sources == 0).tolist()
    assert "fim" in mixed.plan()["sources"]["code"] and "fim" not in mixed.plan()["sources"]["text"]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"rate": 2}, "fim.rate is 2.0"),
        ({"rate": 0.5, "depth": 1}, "fim.depth is not known"),
        ({"rate": 0.5}, "nothing says which token stands between documents"),
        ({"separator": 0}, "fim.prefix is not given"),
        ({"separator": 0, **MARKS, "middle": "<mid>"}, "fim.middle is '<mid>'"),
        ({"separator": 0, **MARKS, "middle": PREFIX}, "give three different ids"),
        ({"separator": PREFIX, **MARKS}, f"id {PREFIX} is a mark and stands between documents"),
        ("yes", "fim is 'yes'"),
    ],
)
def test_what_is_refused(section, says):
    with pytest.raises(ConfigError, match=says):
        open_fim(section, "fim", manifest=None, separator=None, seed=0)


def test_marks_of_the_tokenizer_are_found(tmp_path):
    from tokenizers import Tokenizer, models

    from automodel_cli.corpus.tokenizer import load_tokenizer

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.add_special_tokens(["<fim_prefix>", "<fim_middle>", "<fim_suffix>"])
    made.save(str(tmp_path / "tokenizer.json"))
    known = load_tokenizer(tmp_path).special_ids()

    class Manifest:
        tokenizer, tokenizer_folder, separator_id = {}, tmp_path, 1

    fim = open_fim({}, "fim", manifest=Manifest(), separator=None, seed=0)
    assert fim.marks == tuple(known[f"<fim_{name}>"] for name in ("prefix", "middle", "suffix"))
    assert fim.separator == 1
    named = open_fim(
        {"middle": "<fim_middle>", "prefix": 5, "suffix": 6}, "fim", manifest=Manifest(), separator=0, seed=0
    )
    assert named.marks == (5, known["<fim_middle>"], 6)


def test_a_mark_that_the_model_has_no_row_for_is_refused(tokens):
    NanogptDataset(tokens, 16, fim=SECTION).check_vocab(100)
    with pytest.raises(DataError, match="token id 99 is a mark"):
        NanogptDataset(tokens, 16, fim=SECTION).check_vocab(99)
