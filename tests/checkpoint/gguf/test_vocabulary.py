"""Tokenizers in a GGUF file: named by the split that they have, refused where llama.cpp has no name for it."""

from __future__ import annotations

import json

import pytest
from gguf import TokenType
from tests.checkpoint.gguf import exported

from automodel_cli.checkpoint.gguf.vocabulary import vocabulary_of
from automodel_cli.corpus.conversations.chatml import TEMPLATE, with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.errors import DataError

ROWS = exported.ROWS
CONFIG = {"eos_token": "<|endoftext|>"}


def changed(change, config=CONFIG):
    """The tests' tokenizer with a change of its ``tokenizer.json``."""
    body = json.loads(exported.tokenizer()._json)
    change(body)
    return HFTokenizer("odd", tokenizer_json=json.dumps(body), config_json=json.dumps(config))


def test_each_row_of_the_model_has_a_token_and_a_type():
    found = vocabulary_of(with_chatml(exported.tokenizer()), ROWS)
    assert len(found.tokens) == len(set(found.tokens)) == len(found.types) == ROWS
    assert [found.tokens[k] for k in (0, 320, 321, 322)] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[PAD322]"]
    control, normal, unused = TokenType.CONTROL, TokenType.NORMAL, TokenType.UNUSED
    assert [found.types[k] for k in (0, 1, 319, 320, 321, 322, 329)] == [
        control,
        normal,
        normal,
        control,
        control,
        unused,
        unused,
    ]
    assert found.special == {"bos": 0, "eos": 0, "eot": 321} and found.added == (False, False)
    assert found.stops == ["<|endoftext|>", "<|im_end|>"] and found.is_chatml


def test_merges_are_those_of_the_tokenizer_whatever_its_kind():
    merges = json.loads(exported.tokenizer()._json)["model"]["merges"]
    assert vocabulary_of(exported.tokenizer(), ROWS).merges == [" ".join(pair) for pair in merges]
    assert vocabulary_of(ByteTokenizer(), ROWS).merges == ["ÿ ÿ"]  # llama.cpp wants one; UTF-8 has no such byte


def test_older_files_do_not_say_that_their_model_is_bpe():
    """GPT-2's own ``tokenizer.json`` is one of them."""
    found = vocabulary_of(changed(lambda body: body["model"].pop("type")), ROWS)
    assert found.merges == vocabulary_of(exported.tokenizer(), ROWS).merges and found.split == "gpt-2"


def test_what_only_training_reads_is_taken_out_of_a_chat_template():
    found = vocabulary_of(with_chatml(exported.tokenizer()), ROWS).chat_template
    assert "{% generation %}" in TEMPLATE and "{% generation %}" not in found and "{% if true %}" in found
    own = changed(lambda body: None, {**CONFIG, "chat_template": "{%- generation -%}x{%- endgeneration -%}"})
    assert not vocabulary_of(own, ROWS).is_chatml
    assert vocabulary_of(own, ROWS).chat_template == "{%- if true -%}x{%- endif -%}"


def pre_tokenizer(**section):
    return lambda body: body.update(pre_tokenizer=section)


PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split_by(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return pre_tokenizer(type="Sequence", pretokenizers=[split, BYTE_LEVEL])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (split_by(r"\w+|\W+"), r"no name for the way tokenizer 'odd' splits text: \\w\+\|\\W\+"),
        (pre_tokenizer(**{**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True}), "no name for the way"),
        (pre_tokenizer(**BYTE_LEVEL), "no name for the way"),
        (lambda body: body.update(pre_tokenizer=None), "no name for the way"),
        (lambda body: body.update(normalizer={"type": "Lowercase"}), "it has the normalizer Lowercase"),
        (lambda body: body.update(decoder={"type": "Fuse"}), "characters for tokens, not bytes"),
        (lambda body: body["model"].update(end_of_word_suffix="</w>"), "a prefix or suffix"),
        (
            lambda body: body["added_tokens"].append({**PLAIN, "id": 320, "content": "<x>", "lstrip": True}),
            "added tokens that take spaces with them",
        ),
        (
            lambda body: body.update(post_processor={
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "!", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"!": {"id": "!", "ids": [1], "tokens": ["!"]}},
            }),
            r"puts \[\] before and \[1\] after each text",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_read_otherwise_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        vocabulary_of(changed(change), ROWS)


def test_pieces_that_stay_whole_matter_only_where_merges_do_not_make_them():
    def whole(body):
        body["model"]["ignore_merges"] = True

    assert vocabulary_of(changed(whole), ROWS).split == "gpt-2"

    def with_orphan(body):
        whole(body)
        body["model"]["merges"].pop()

    with pytest.raises(DataError, match="tokens that no merges make"):
        vocabulary_of(changed(with_orphan), ROWS)


def test_a_normalizer_that_llama_cpp_lacks_but_seldom_matters_is_told():
    found = vocabulary_of(changed(lambda body: body.update(normalizer={"type": "NFC"})), ROWS)
    assert "does not normalize" in found.notes[1]
    assert found.notes[0] == "10 of the model's 330 ids have no token in odd: they are marked as unused"


@pytest.mark.parametrize(
    ("tokenizer", "rows", "said"),
    [
        (CharTokenizer("abc"), 3, "characters for tokens, not bytes"),
        (exported.tokenizer(), 319, "has 320 ids, the model 319"),
        (changed(lambda body: body.update(added_tokens=[]), {"eos_token": "none"}), ROWS, "no end-of-text"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer, rows, said):
    tokenizer.eot_id = tokenizer.bos_id = None if said == "no end-of-text" else tokenizer.eot_id
    with pytest.raises(DataError, match=said):
        vocabulary_of(tokenizer, rows)
