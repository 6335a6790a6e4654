"""Token spans: pieces encoded alone give the ids of the whole, spans survive cropping."""

from __future__ import annotations

import pytest
from tests.evaluation.small_bundle import ITEMS

from automodel_cli.corpus.tokenizer import ByteTokenizer, open_tokenizer
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.evaluation.icl.prompts import example_numbers, ordered, render
from automodel_cli.evaluation.icl.rows import Encoder, Row, common_prefix, common_suffix, cropped, rows_of
from automodel_cli.evaluation.icl.tasks import TASKS


def test_common_ends():
    assert common_prefix([(1, 2, 3), (1, 2, 4, 5), (1, 2)]) == 2
    assert common_prefix([(1,), (2,)]) == 0
    assert common_prefix([(3, 4)]) == 2
    assert common_suffix([(9, 2, 3), (1, 1, 2, 3), (2, 3)]) == 2


@pytest.mark.parametrize(
    ("row", "context", "expected"),
    [
        (Row((1, 2, 3, 4), 2, 4), None, Row((1, 2, 3, 4), 2, 4)),
        (Row((1, 2, 3, 4), 2, 4), 4, Row((1, 2, 3, 4), 2, 4)),
        (Row((1, 2, 3, 4, 5), 3, 5), 3, Row((3, 4, 5), 1, 3)),
        (Row((1, 2, 3, 4, 5), 2, 5), 3, Row((3, 4, 5), 1, 3)),  # the first id cannot be predicted
        (Row((1, 2), 0, 2), 5, Row((1, 2), 1, 2)),
        (Row((1, 2, 3, 4), 1, 2), 2, Row((3, 4), 1, 1)),  # nothing of the span is left
    ],
)
def test_cropping_keeps_the_tail(row, context, expected):
    assert cropped(row, context) == expected


def spans(kind, prompts):
    rows, moved = rows_of(kind, prompts)
    return [(row.start, row.end) for row in rows], moved


def test_spans_of_each_kind():
    assert spans("multiple_choice", [(0, 1, 2, 7), (0, 1, 2, 8, 9)]) == ([(3, 4), (3, 5)], False)
    assert spans("schema", [(0, 5, 1, 2), (0, 6, 6, 1, 2)]) == ([(2, 4), (3, 5)], False)
    assert spans("language_modeling", [(0, 1, 2), (0, 1, 2, 3, 4)]) == ([(3, 5)], False)
    joined_across_the_border = [(0, 1, 2), (0, 1, 9, 3)]
    assert spans("language_modeling", joined_across_the_border) == ([(2, 4)], False)


def test_no_span_is_empty():
    """A span without ids has a loss of nothing, and every one of its no tokens is the likeliest."""
    assert spans("multiple_choice", [(0, 1, 2), (0, 1, 2, 8, 9)]) == ([(2, 3), (2, 5)], True)
    assert spans("multiple_choice", [(0, 1, 2), (0, 1, 2)]) == ([(2, 3), (2, 3)], True)
    assert spans("schema", [(0, 5, 1), (0, 6, 6, 2)]) == ([(2, 3), (3, 4)], True)
    assert spans("language_modeling", [(0, 1, 2), (0, 1, 2)]) == ([(2, 3)], True)
    assert spans("language_modeling", [(0, 1, 2), (0, 1)]) == ([(1, 2)], True)


def test_first_token():
    tokenizer = ByteTokenizer()
    assert Encoder(tokenizer).encode(("ab",))[1:] == tuple(tokenizer.encode("ab"))
    tokenizer.bos_id = tokenizer.eot_id = None
    with pytest.raises(ConfigError, match="end-of-text"):
        Encoder(tokenizer)


class Counting(ByteTokenizer):
    """How often it was asked to encode what."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.asked.append(text)
        return super().encode(text)


def test_pieces_are_encoded_once():
    tokenizer = Counting()
    tokenizer.cuts_at_spaces = True
    encoder = Encoder(tokenizer)
    encoder.encode(("worked one", "\n\nworked two.", "\n\nquestion a"))
    encoder.encode(("worked one", "\n\nworked two.", "\n\nquestion b"))
    # after a full stop a tokenizer may go on into the next line, after a letter it may not
    assert tokenizer.asked == ["worked one", "\n\nworked two.\n\nquestion a", "\n\nworked two.\n\nquestion b"]


def test_pieces_give_the_ids_of_the_whole(real_bundle, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(real_bundle.parent / "tokenizers" / "tiktoken_cache"))
    try:
        tokenizer = open_tokenizer("gpt2")
    except AutomodelError as error:
        pytest.skip(f"GPT-2's vocabulary is not here: {error}")
    assert tokenizer.cuts_at_spaces
    encoder = Encoder(tokenizer)
    for name in (
        "arc_easy",
        "boolq",
        "jeopardy",
        "commonsense_qa",
        "piqa",
        "bigbench_dyck_languages",
        "gsm8k_cot",
    ):
        data = Bundle(real_bundle).load(TASKS[name])
        assert data is not None
        items = ordered(data.items, 40)
        for number, item in enumerate(items):
            examples = [items[other] for other in example_numbers(len(items), number, 5)]
            for prompt in render(TASKS[name], item, examples):
                whole = [tokenizer.bos_id, *tokenizer.encode("".join(prompt))]
                assert list(encoder.encode(prompt)) == whole


def test_odd_text_of_our_own():
    tokenizer = ByteTokenizer()
    encoder = Encoder(tokenizer)
    for item in ITEMS["commonsense_reasoning/copa"]:
        for prompt in render(TASKS["copa"], item, []):
            assert tokenizer.decode(encoder.encode(prompt)[1:]) == "".join(prompt)


def test_prompts_begin_with_the_token_that_the_corpus_holds() -> None:
    """Where documents are separated by end-of-text, the tokenizer's own beginning-of-text was never seen."""
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = 7  # type: ignore[misc]
    assert Encoder(tokenizer).encode(("a",)) == (7, 97)
    assert Encoder(tokenizer, 256).encode(("a",)) == (256, 97)
