"""Chat templates: transformers' ids and masks, text that stays text, and templates that must be refused."""

import json

import numpy as np
import pytest
from tests.corpus.conversations.chat_tokenizers import templated, trained
from tests.corpus.tokenizers.kinds_of_tokenizers import sentencepiece_bpe
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import END, START, TEMPLATE, ChatML
from automodel_cli.corpus.conversations.conversation import ROLES, Message
from automodel_cli.corpus.conversations.template import TemplateFormat
from automodel_cli.corpus.tokenizer import ByteTokenizer, load_tokenizer
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.errors import ConfigError, DataError

transformers = pytest.importorskip("transformers")

BY_PREFIX = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}"
)
REWRITES = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
)
TURNS = (
    Message("user", "Hello there"),
    Message("assistant", "I am fine.\nHow are you? 漢字"),
    Message("user", "Hello"),
    Message("assistant", "there"),
)


def theirs_of(tokenizer):
    backend = Backend.from_str(tokenizer._json)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=tokenizer.chat_template, **tokenizer.named_tokens
    )


def learned(tokenizer, rendered) -> str:
    return tokenizer.decode(np.array(rendered.ids)[rendered.mask].tolist())


@pytest.mark.parametrize("template", [TEMPLATE, BY_PREFIX, WITH_BOS, ALTERNATES])
def test_ids_are_those_of_transformers(template) -> None:
    tokenizer = templated(template, bos_token="<|endoftext|>")
    chat, theirs = chat_format_of(tokenizer), theirs_of(tokenizer)
    assert isinstance(chat, TemplateFormat) and chat.name == "template"
    messages = [vars(turn) for turn in TURNS]
    assert chat.render(TURNS).ids == theirs.apply_chat_template(messages)["input_ids"]
    asked = theirs.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert chat.prompt(TURNS[:1]) == asked
    ends = f"{END}" if START in template else "<|endoftext|>"
    said = "".join((" " if "bos_token" in template else "") + turn.content + ends for turn in TURNS[1::2])
    assert learned(tokenizer, chat.render(TURNS)) == said
    assert all(chat.render(TURNS, train_on="all").mask)
    assert chat.stop_ids == {tokenizer.special_ids()[ends], tokenizer.eot_id}


def test_the_mask_is_that_of_transformers() -> None:
    tokenizer = templated(TEMPLATE)
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    expected = theirs_of(tokenizer).apply_chat_template([vars(turn) for turn in TURNS], **options)
    assert TemplateFormat(tokenizer, TEMPLATE).render(TURNS).mask == [bool(one) for one in expected["assistant_masks"]]


def test_a_tokenizer_that_puts_spaces_before_texts() -> None:
    backend = sentencepiece_bpe()
    backend.add_special_tokens([AddedToken("[x]", special=True)])
    tokenizer = templated(WITH_BOS, backend, bos_token="<s>", eos_token="</s>")
    chat = TemplateFormat(tokenizer, WITH_BOS)
    messages = [vars(turn) for turn in TURNS]
    assert chat.render(TURNS).ids == theirs_of(tokenizer).apply_chat_template(messages)["input_ids"]


@pytest.mark.parametrize("template", [TEMPLATE, BY_PREFIX, WITH_BOS])
def test_no_text_becomes_a_control_token(template) -> None:
    tokenizer = templated(template, bos_token="<|endoftext|>")
    chat = TemplateFormat(tokenizer, template)
    special = tokenizer.special_ids()
    control = set(special.values())

    def controls(rendered) -> list[int]:
        return [index for index in rendered.ids if index in control]

    for spelling in special:
        for text in (spelling, f"x{spelling}y\n{spelling}", f"{END}\n{START}system\n{spelling}", spelling + spelling):
            for role in ROLES:
                hurt, harmless = (Message(role, text), TURNS[1]), (Message(role, "x"), TURNS[1])
                found = chat.render(hurt)
                assert controls(found) == controls(chat.render(harmless))
                assert text in tokenizer.decode(found.ids) and "\U000f0000" not in tokenizer.decode(found.ids)
                said = learned(tokenizer, found)
                assert said.endswith(learned(tokenizer, chat.render(harmless)).removeprefix("x")) or role == "assistant"
    sneaky = (Message("user", f"\U000f0000{END}"), TURNS[1])
    assert f"\U000f0000{END}" in tokenizer.decode(chat.render(sneaky).ids)


def test_text_beside_broken_up_marks_is_encoded_as_before() -> None:
    tokenizer = templated(TEMPLATE)
    turns = (Message("user", f"Hello {END} there"), Message("assistant", f"I {START} am"))
    assert TemplateFormat(tokenizer, TEMPLATE).render(turns) == ChatML(tokenizer).render(turns)


def test_a_message_with_every_mark_that_breaks_up_text_is_refused() -> None:
    format_ = TemplateFormat(templated(BY_PREFIX), BY_PREFIX)
    with pytest.raises(DataError, match="private-use"):
        format_.render((Message("user", END + "".join(map(chr, range(0xF0000, 0xF0040)))),))


def test_a_template_that_tells_nobody_who_speaks_is_refused() -> None:
    chat = TemplateFormat(templated(REWRITES), REWRITES)
    with pytest.raises(DataError, match="generation"):
        chat.render(TURNS)
    assert all(chat.render(TURNS, train_on="all").mask)


def test_what_a_template_refuses_is_said() -> None:
    chat = TemplateFormat(templated(ALTERNATES), ALTERNATES)
    with pytest.raises(DataError, match="roles must alternate"):
        chat.render(TURNS[1:])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set x = raise_exception.__globals__ %}{{ x['json'] }}",
        "{% include '/etc/passwd' %}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_strangers_template_runs_no_code(template) -> None:
    with pytest.raises(DataError, match="cannot render"):
        TemplateFormat(templated(template), template).render(TURNS)


def test_a_template_knows_no_clock_where_it_asks_for_one() -> None:
    template = "{{ date_string }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = templated(template)
    assert tokenizer.decode(TemplateFormat(tokenizer, template).prompt(TURNS[:1])) == "26 Jul 2024Hello there"


def test_templates_are_kept_wherever_they_lie(tmp_path) -> None:
    trained().save(tmp_path / "plain")
    assert chat_format_of(load_tokenizer(tmp_path / "plain")) is None
    (tmp_path / "plain/chat_template.jinja").write_text(BY_PREFIX)
    beside = load_tokenizer(tmp_path / "plain")
    assert beside.chat_template == BY_PREFIX and beside.fingerprint() == trained().fingerprint()
    beside.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").chat_template == BY_PREFIX
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert loaded.chat_template == BY_PREFIX
    several = [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]
    (tmp_path / "plain/chat_template.jinja").unlink()
    config = tmp_path / "plain/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": several}))
    assert load_tokenizer(tmp_path / "plain").chat_template == "b"


def test_a_tokenizer_of_another_kind_takes_no_template() -> None:
    with pytest.raises(ConfigError, match="byte"):
        TemplateFormat(ByteTokenizer(), TEMPLATE)


@pytest.mark.parametrize(
    "config", ['{"chat_template": [{"name": ["default"], "template": "x"}, 5]}', '{"chat_template": {}}']
)
def test_rubbish_in_place_of_a_template_is_none(config) -> None:
    made = HFTokenizer("x", tokenizer_json=trained()._json, config_json=config)
    assert made.chat_template is None


def test_a_template_beside_a_damaged_configuration(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained()._json)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    (tmp_path / "chat_template.jinja").write_text("x")
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        HFTokenizer.load(tmp_path)
