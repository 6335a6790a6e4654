"""Numbers as the start-up table shows them."""

import pytest

from automodel_cli.assembly.summary import binary, data_rows, human
from automodel_cli.corpus.megatron_bin import write_megatron_file
from automodel_cli.data.megatron_dataset import MegatronPretraining


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999"), (1500, "1.5K"), (124_439_808, "124.4M"), (2.5e9, "2.5B"), (3e12, "3.0T")],
)
def test_human(number, text):
    assert human(number) == text


@pytest.mark.parametrize(("size", "text"), [(3 << 20, "3 MiB"), (3 << 29, "1.5 GiB"), (0, "0 MiB")])
def test_binary(size, text):
    assert binary(size) == text


def test_files_of_a_blend_are_listed_the_first_and_last_of_many(tmp_path):
    for number in range(40):
        write_megatron_file(tmp_path / f"data_{number:02d}", [[[1] * 50]] * 10, dtype="uint16")
    few = data_rows("train", MegatronPretraining(str(tmp_path / "data_0?"), 8, order="stateless"))
    assert len(few) == 11
    assert few[1][0] == "  data_00"
    assert few[1][1] == "documents 0 to 9 of 10, 450 tokens; weight 0.1, 56 samples, 1 epochs"
    many = data_rows("train", MegatronPretraining(str(tmp_path), 8, order="stateless"))
    names = [name.strip() for name, _ in many]
    assert names[1:9] == [f"data_{number:02d}" for number in range(8)]
    assert many[9] == ("", "... 24 more files")
    assert names[10:] == [f"data_{number}" for number in range(32, 40)]
