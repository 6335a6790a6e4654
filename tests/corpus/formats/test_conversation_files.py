"""Files of conversations: what is written is read, and what does not belong together is refused."""

import errno
import pickle

import numpy as np
import pytest

from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.conversation_files import (
    ConversationFile,
    ConversationWriter,
    mask_path,
    read_order,
    write_order,
)
from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.errors import AutomodelError, DataError

LENGTHS = np.array([3, 1, 4])
TOKENS, MASK = np.arange(10, 18, dtype=np.uint16), np.array([0, 1, 1, 0, 0, 0, 1, 0], dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    writer = ConversationWriter(tmp_path / "train_x.bin", np.dtype(np.uint16))
    writer.write(TOKENS[:4], MASK[:4], LENGTHS[:2])
    writer.write(TOKENS[4:], MASK[4:], LENGTHS[2:])
    writer.close()
    return tmp_path / "train_x.bin"


def test_round_trip(path) -> None:
    found = ConversationFile.open(path)
    assert len(found) == 3 and found.lengths.tolist() == [3, 1, 4] and found.learned().tolist() == [2, 0, 1]
    for opened in (found, pickle.loads(pickle.dumps(found))):
        ids, mask = opened.read(2)
        assert (ids.tolist(), mask.tolist()) == ([14, 15, 16, 17], [False, False, True, False])
        ids, mask = opened.read(0, most=2)
        assert (ids.tolist(), mask.tolist(), ids.dtype) == ([10, 11], [False, True], np.int64)
    assert inspect_token_file(path).num_tokens == 8 and mask_path(path).read_bytes() == MASK.tobytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: mask_path(path).unlink(), "no mask"),
        (lambda path: bos_index_path(path).unlink(), "no index"),
        (lambda path: mask_path(path).write_bytes(MASK[:5].tobytes()), "belong together"),
        (lambda path: bos_index_path(path).write_bytes(np.array([1, 4], "<i4").tobytes()), "belong together"),
    ],
)
def test_what_does_not_belong_together(path, damage, says) -> None:
    damage(path)
    with pytest.raises(DataError, match=says):
        ConversationFile.open(path)


def test_an_abandoned_file_leaves_nothing(tmp_path) -> None:
    writer = ConversationWriter(tmp_path / "a.bin", np.dtype(np.uint16))
    writer.write(TOKENS, MASK, LENGTHS)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_a_mixture(tmp_path) -> None:
    write_order(tmp_path, np.array([2, 0, 2]))
    assert read_order(tmp_path, 3).tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="beyond the 2"):
        read_order(tmp_path, 2)
    for content in (b"1234", b""):
        (tmp_path / "train.order").write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            read_order(tmp_path, 3)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """The mask is a byte a token: with short tokens it is what fills the disk."""

    def full(growing):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ConversationWriter(tmp_path / "train_x.bin", np.dtype(np.uint16))
    writer.write(TOKENS, MASK, LENGTHS)
    monkeypatch.setattr(GrowingFile, "publish", full)
    with pytest.raises(AutomodelError, match=r"no room left while writing .*train_x\.mask"):
        writer.close()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
