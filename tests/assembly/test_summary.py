"""Numbers as the start-up table shows them."""

from tests.token_files import write_megatron_file

from automodel_cli.assembly.summary import blend_table
from automodel_cli.data.megatron_dataset import MegatronPretraining


def test_files_of_a_blend_are_listed_the_first_and_last_of_many(tmp_path):
    for number in range(40):
        write_megatron_file(tmp_path / f"data_{number:02d}", [[[1] * 50]] * 10, dtype="uint16")
    few = MegatronPretraining(str(tmp_path / "data_0?"), 8, order="stateless")
    _, headings, rows = blend_table({"train": few, "other": object()})
    assert len(headings) == len(rows[0]) == 9
    assert len(rows) == 11
    assert rows[0] == ("train", "data_00", "9", "0", "8", "450", "0.1", "56", "0.996")
    assert rows[-1] == ("train", "all 10", "90", "", "", "4,500", "1", "560", "0.996")
    many = MegatronPretraining(str(tmp_path), 8, order="stateless")
    names = [row[1] for row in blend_table({"train": many})[2]]
    assert names[:8] == [f"data_{number:02d}" for number in range(8)]
    assert names[8] == "... 24 more"
    assert names[9:] == [*(f"data_{number}" for number in range(32, 40)), "all 40"]


def test_without_megatron_files_there_is_no_such_table():
    assert blend_table({"train": object()}) is None


def test_samples_are_those_that_are_read_not_all_that_were_indexed(tmp_path):
    for number in range(2):
        write_megatron_file(tmp_path / f"data_{number}", [[[1] * 50]] * 20, dtype="uint16")
    one = MegatronPretraining(str(tmp_path / "data_0"), 8, split="1,0,0", num_train_samples=10)
    assert len(one.order) > 10
    (row,) = blend_table({"train": one})[2]
    assert row[6:] == ("1", "10", "0.08")
    both = ["1", str(tmp_path / "data_0"), "1", str(tmp_path / "data_1")]
    two = MegatronPretraining(both, 8, split="1,0,0", num_train_samples=10)
    assert [row[7] for row in blend_table({"train": two})[2]] == ["5", "5", "10"]
