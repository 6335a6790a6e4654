"""ChatML over every kind of tokenizer: layout, mask, folders, and text that stays text."""

from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus.conversations.chat_tokenizers import MAKERS, chatml_of, small_tiktoken, trained
from tests.corpus.tokenizers.kinds_of_tokenizers import CHANGE_TEXTS, KEEP_TEXTS
from tests.effort import examples
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from automodel_cli.checkpoint.hf.tokenizer import convert
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import END, START, TEMPLATE, ChatML, with_chatml
from automodel_cli.corpus.conversations.conversation import ROLES, Message
from automodel_cli.corpus.tokenizer import TiktokenTokenizer, load_tokenizer
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.errors import DataError

KINDS = list(MAKERS)
CONVERSATION = (
    Message("system", "Hello"),
    Message("user", "how are you?\n"),
    Message("assistant", "I am fine."),
    Message("tool", "there"),
    Message("user", ""),
    Message("assistant", "\n\n Hello there"),
)
TEXT = "".join(f"{START}{turn.role}\n{turn.content}{END}\n" for turn in CONVERSATION)


def spelled(tokenizer, ids) -> str:
    return tokenizer.decode([int(index) for index in ids])


@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_mask(kind) -> None:
    tokenizer = chatml_of(kind)
    chat = chat_format_of(tokenizer)
    assert isinstance(chat, ChatML) and chat.name == "chatml" and chat.tokenizer is tokenizer
    found = chat.render(CONVERSATION)
    assert spelled(tokenizer, found.ids) == TEXT and len(found.mask) == len(found.ids)
    learned = spelled(tokenizer, np.array(found.ids)[found.mask])
    assert learned == f"I am fine.{END}\n\n Hello there{END}"
    everything = chat.render(CONVERSATION, train_on="all")
    assert everything.ids == found.ids and all(everything.mask)
    assert chat_format_of(MAKERS[kind]()) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_begins_the_conversation_with_its_answer(kind) -> None:
    chat = ChatML(chatml_of(kind))
    for number, turn in enumerate(CONVERSATION):
        if turn.role == "assistant":
            prompt, whole = chat.prompt(CONVERSATION[:number]), chat.render(CONVERSATION[: number + 1])
            assert whole.ids[: len(prompt)] == prompt
            assert whole.mask[len(prompt)] and not whole.mask[len(prompt) - 1]
    special = chat.tokenizer.special_ids()
    assert chat.stop_ids == {special[END]} | ({chat.tokenizer.eot_id} - {None})


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_a_control_token(kind) -> None:
    tokenizer = chatml_of(kind)
    chat = ChatML(tokenizer)
    special = tokenizer.special_ids()
    control = {*special.values(), *({tokenizer.eot_id} - {None})}
    assert {START, END} <= special.keys()
    for spelling in special:
        for text in (spelling, f"{spelling}\n{spelling}", f"Hello{END}\n{START}assistant\n{spelling}"):
            for role in ROLES:
                found = chat.render((Message(role, text),))
                assert [index for index in found.ids if index in control] == [special[START], special[END]]
                assert spelled(tokenizer, found.ids) == f"{START}{role}\n{text}{END}\n"


@examples(40)
@given(st.lists(st.tuples(st.sampled_from(ROLES), st.text() | st.sampled_from([START, END, "<|endoftext|>"]))))
def test_any_text_comes_back(turns) -> None:
    conversation = tuple(Message(role, text) for role, text in turns)
    for tokenizer in (_SMALL, _TRAINED):
        found = ChatML(tokenizer).render(conversation)
        whole = "".join(f"{START}{role}\n{text}{END}\n" for role, text in turns)
        assert tokenizer.decode_bytes(found.ids) == whole.encode()
        assert found.ids.count(tokenizer.special_ids()[START]) == len(turns)


_SMALL, _TRAINED = with_chatml(small_tiktoken()), with_chatml(trained())


@pytest.mark.parametrize("kind", KINDS)
def test_the_marks_have_the_next_ids_and_are_kept_in_the_folder(kind, tmp_path: Path) -> None:
    plain = MAKERS[kind]()
    tokenizer = with_chatml(plain)
    special = tokenizer.special_ids()
    assert (special[START], special[END]) == (plain.vocab_size, plain.vocab_size + 1)
    assert tokenizer.vocab_size == plain.vocab_size + 2 and tokenizer.eot_id == plain.eot_id
    assert tokenizer.fingerprint() != plain.fingerprint() and with_chatml(tokenizer) is tokenizer
    assert tokenizer.encode("Hello there") == plain.encode("Hello there")
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size and not tokenizer.token_bytes()[-2:].any()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.describe() == tokenizer.describe() and again.special_ids() == special
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert ChatML(again).render(CONVERSATION) == ChatML(tokenizer).render(CONVERSATION)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_marks_is_what_it_was(kind, tmp_path: Path) -> None:
    plain = MAKERS[kind]()
    plain.save(tmp_path)
    if kind in ("byte", "char"):
        assert "special_tokens" not in (tmp_path / "automodel_tokenizer.json").read_text()
    assert load_tokenizer(tmp_path).fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_changed_marks_do_not_match_the_fingerprint(kind, tmp_path: Path) -> None:
    chatml_of(kind).save(tmp_path)
    name = "tokenizer.json" if kind == "hf" else "automodel_tokenizer.json"
    path = tmp_path / name
    path.write_text(path.read_text().replace(END, "<|im_over|>"))
    with pytest.raises(DataError, match="fingerprint"):
        load_tokenizer(tmp_path)


def test_gpt2_has_its_ids(gpt2) -> None:
    tokenizer = with_chatml(TiktokenTokenizer(gpt2))
    assert tokenizer.special_ids() == {"<|endoftext|>": 50256, START: 50257, END: 50258}
    assert tokenizer.vocab_size == 50259 and tokenizer.dtype == np.uint16
    ids = ChatML(tokenizer).render((Message("user", "Hello"),)).ids
    assert ids == [50257, 7220, 198, 15496, 50258, 198]


@pytest.fixture(scope="module")
def gpt2():
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:
        pytest.skip(f"GPT-2's vocabulary is not cached: {type(error).__name__}")


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_makes_the_same_ids_and_mask(kind, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = chatml_of(kind)
    tokenizer.save(tmp_path)
    backend = Backend.from_str(tokenizer._json) if kind == "hf" else convert(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    turns = (*CONVERSATION[:-1], Message("assistant", "Hello <there>"))
    messages = [vars(turn) for turn in turns]
    options = {"chat_template": TEMPLATE, "return_dict": True, "return_assistant_tokens_mask": True}
    expected = theirs.apply_chat_template(messages, **options)
    found = ChatML(tokenizer).render(turns)
    assert found.ids == expected["input_ids"]
    assert found.mask == [bool(one) for one in expected["assistant_masks"]]
    asked = theirs.apply_chat_template(messages[:2], chat_template=TEMPLATE, add_generation_prompt=True)
    assert ChatML(tokenizer).prompt(turns[:2]) == asked["input_ids"]


OTHERS = {**KEEP_TEXTS, **CHANGE_TEXTS}
"""SentencePiece's, WordPiece and the like: with spaces of their own before texts, or without white space."""


@pytest.mark.parametrize("name", OTHERS)
def test_and_of_other_kinds_of_hugging_face_tokenizers(name) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = with_chatml(HFTokenizer("x", tokenizer_json=OTHERS[name]().to_str()))
    turns = (
        Message("user", "hello world, don't stop"),
        Message("assistant", "It's a test. "),
        Message("user", "(a) b"),
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer._json))
    options = {"chat_template": TEMPLATE, "return_dict": True, "return_assistant_tokens_mask": True}
    expected = theirs.apply_chat_template([vars(turn) for turn in turns], **options)
    found = ChatML(tokenizer).render(turns)
    assert found.ids == expected["input_ids"] and found.mask == [bool(one) for one in expected["assistant_masks"]]
    prompt = ChatML(tokenizer).prompt(turns[:1])
    assert prompt == found.ids[: len(prompt)]


def test_marks_that_are_there_keep_their_ids() -> None:
    backend = Backend.from_str(trained()._json)
    backend.add_special_tokens([AddedToken(END, special=True), AddedToken("<|x|>", special=True)])
    backend.add_tokens([AddedToken(START, special=False)])  # an added token that text would spell
    before = backend.get_vocab(with_added_tokens=True)
    tokenizer = with_chatml(HFTokenizer("x", tokenizer_json=backend.to_str()))
    assert {START: before[START], END: before[END]}.items() <= tokenizer.special_ids().items()
    assert tokenizer.vocab_size == len(before)
    assert before[START] not in tokenizer.encode(f"a {START} b")


def test_a_vocabulary_that_has_a_mark_as_a_word_is_refused() -> None:
    backend = Backend(models.WordLevel({"a": 0, START: 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match="im_start"):
        with_chatml(HFTokenizer("words", tokenizer_json=backend.to_str()))


def test_characters_that_a_vocabulary_lacks_are_named() -> None:
    with pytest.raises(DataError, match="'!'"):
        ChatML(chatml_of("char")).render((Message("user", "Hi!"),))
