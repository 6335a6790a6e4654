"""Letters and written answers: prompts as in mid-training, the choice of a plain computation, grading as elsewhere."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from tests.evaluation.chat_rows import ROWS, write_rows

from automodel_cli.batch import Batch
from automodel_cli.corpus.conversations.chatml import ChatML, with_chatml
from automodel_cli.corpus.conversations.conversation import Message
from automodel_cli.corpus.conversations.tasks import TASKS as MIDTRAINING
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import DataError
from automodel_cli.evaluation.chat import data, scores, tasks
from automodel_cli.evaluation.chat.tasks import TASKS, Question
from automodel_cli.evaluation.span_scores import SpanScorer
from automodel_cli.models.gpt2 import build_gpt2_model

CHAT = ChatML(with_chatml(ByteTokenizer()))


@pytest.fixture(scope="module")
def engine() -> SpanScorer:
    model = build_gpt2_model(vocab_size=259, n_positions=200, n_embd=32, n_layer=2, n_head=2)
    model.materialize("cpu", seed=7)
    with torch.no_grad():
        for weight in (*model.h.parameters(), model.wte.weight):
            weight.mul_(10)
    return SpanScorer(model.eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_rows(tmp_path_factory.mktemp("rows")))


def quiet(done: int, total: int) -> None:
    pass


def test_letters_are_chosen_by_their_logits_alone(engine, folder) -> None:
    asked = data.load(TASKS["arc_easy_chat"], folder, None)
    entry = scores.evaluate(TASKS["arc_easy_chat"], asked, CHAT, engine, quiet)
    letters = [ord(letter) for letter in "ABCD"]
    chosen = ""
    for question in asked.questions:
        logits = engine.model(Batch(torch.tensor([CHAT.prompt(question.conversation)])))[0, -1]
        chosen += str(int(logits[letters].argmax()))
    assert entry["chosen"] == chosen and len(set(chosen)) > 1
    golds = [str(question.gold) for question in asked.questions]
    assert entry["correct"] == "".join(str(int(a == b)) for a, b in zip(chosen, golds, strict=True))
    assert (entry["kind"], entry["baseline"], entry["cut_to_context"]) == ("letters", 0.25, 0)


@pytest.mark.parametrize(("name", "trained"), [("arc_easy_chat", "arc"), ("mmlu_chat", "mmlu_auxiliary")])
def test_questions_are_those_of_mid_training(name, trained) -> None:
    for row in ROWS[name]:
        question = TASKS[name].read(row)
        *asked, said = MIDTRAINING[trained].conversation(row)
        assert question.conversation == tuple(asked) and question.answers[question.gold] == said.content
        ids = CHAT.render((*asked, said)).ids
        row_of = scores.letter_rows(question, CHAT)[question.gold]
        assert tuple(ids[: len(row_of.ids)]) == row_of.ids and row_of.ids[-1] == ord(said.content[0])


def test_letters_that_look_alike_are_refused() -> None:
    question = Question((Message("user", "?"),), {}, ("A", "B"))
    blind = SimpleNamespace(
        tokenizer=SimpleNamespace(name="blind"),
        render=lambda turns: SimpleNamespace(ids=[1, 2, 3, len(turns[-1].content)]),
    )
    with pytest.raises(DataError, match="blind does not tell"):
        scores.letter_rows(Question(question.conversation, {}, ("AA", "BB", "C")), blind)


def test_answers_are_written_as_generate_does(engine) -> None:
    said = [(Message("user", "Why?" * n),) for n in (1, 5, 60)]
    texts, cut = scores.write(said, CHAT, engine, 12, quiet)
    assert cut == 1  # 200 places: half of them are the answer's at most, so the last prompt loses its beginning
    for conversation, text in zip(said[:2], texts[:2], strict=True):
        ids = CHAT.prompt(conversation)
        written = []
        while len(written) < 12:
            token = int(engine.model(Batch(torch.tensor([[*ids, *written]])))[0, -1, :259].argmax())
            if token in CHAT.stop_ids:
                break
            written.append(token)
        assert text == CHAT.tokenizer.decode(written)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so 3 + 4 = 7.\n#### 7", "7", "7"),
        ("#### 1,234.", "1234", "1234"),
        ("#### -5 pears", "-5", "-5"),
        ("#### $5", "", "5"),
        ("it costs $1,000.50", "", "1000.50"),
        ("#### 3 then #### 4", "3", "4"),
        ("####7", "", "7"),
        ("none", "", ""),
    ],
)
def test_numbers(text, strict, flexible) -> None:
    assert (tasks.strict_number(text), tasks.flexible_number(text)) == (strict, flexible)


def test_numbers_are_found_as_the_harness_finds_them() -> None:
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    texts = [
        "a 7\n#### 7",
        "#### 1,234.",
        "#### $5",
        "$1,000.50 .",
        "#### -3 4",
        "1.5.",
        "nothing",
        "-",
        "a -8,",
        "5 $",
    ]
    kept = {"strict": r"#### (\-?[0-9\.\,]+)", "flexible": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"}
    for kind, own in (("strict", tasks.strict_number), ("flexible", tasks.flexible_number)):
        group = -1 if kind == "flexible" else 0
        found = extraction.RegexFilter(kept[kind], group_select=group).apply(
            [[text] for text in texts], [{}] * len(texts)
        )
        for text, (number,) in zip(texts, found, strict=True):
            for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
                number = re.sub(ignored, "", number)
            assert own(text) == ("" if number == "[invalid]" else number), text


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return x + 1\n", True),
        ("```python\n    return x + 1\n```", True),
        ("Here:\n```python\ndef plus_1(x):\n    return x + 1\n```\nIt adds.", True),
        ("```\nimport math\ndef plus_1(x: int) -> int:\n    return math.floor(x + 1)", True),
        ("def plus_1(x):\n    return x\n", False),
        ("I cannot.", False),
        ("", False),
    ],
)
def test_the_program_that_decides(answer, right) -> None:
    question = TASKS["humaneval_chat"].read(ROWS["humaneval_chat"][1])
    text = tasks.program(question, answer)
    assert text.startswith(question.row["prompt"]) and text.endswith("\ncheck(plus_1)\n")
    try:
        exec(compile(text, "ours", "exec"), {})  # our own text
        assert right
    except (AssertionError, SyntaxError):
        assert not right


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("arc_easy_chat", {"answerKey": "E"}, "arc_easy_chat.jsonl:3: answerKey 'E'"),
        ("mmlu_chat", {"answer": 4}, "answer 4 of 4"),
        ("mmlu_chat", {"choices": []}, "answer 1 of 0"),
        ("mmlu_chat", {"question": None}, "column 'question'"),
        ("gsm8k_chat", {"answer": "no number"}, "no '#### NUMBER'"),
        ("gsm8k_chat", {"answer": "#### ,"}, "no '#### NUMBER'"),
        ("humaneval_chat", {"entry_point": "x); import os; (x"}, "is no name"),
        ("humaneval_chat", {"test": 1}, "column 'test'"),
        ("ifeval_chat", {"kwargs": []}, "one length"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, name, changed, says) -> None:
    good = ROWS[name][0]
    rows = [good, good, {**good, **changed}]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=re.escape(says)):
        data.load(TASKS[name], str(tmp_path), None)
    for text in ("", "[]\n", "{\n", "3\n"):
        (tmp_path / f"{name}.jsonl").write_text(text)
        with pytest.raises(DataError):
            data.load(TASKS[name], str(tmp_path), None)


def test_a_row_beyond_the_bound(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("automodel_cli.corpus.conversations.rows.MAX_DOCUMENT_BYTES", 1000)
    name = "mmlu_chat"
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({**ROWS[name][0], "question": "x" * 1000}))
    with pytest.raises(DataError, match=r"mmlu_chat\.jsonl:1 is longer than 1,000 bytes"):
        data.load(TASKS[name], str(tmp_path), None)


def test_the_same_rows_are_the_same_data(tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    name = "mmlu_chat"
    first = data.load(TASKS[name], str(write_rows(tmp_path / "a", name)), None)
    (tmp_path / "b" / name).mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[name]), tmp_path / "b" / name / "test-0.parquet")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / f"{name}.json").write_text(json.dumps(ROWS[name]))
    for other in "bc":
        found = data.load(TASKS[name], str(tmp_path / other), None)
        assert found.fingerprint == first.fingerprint and found.questions == first.questions
    assert data.load(TASKS[name], str(tmp_path / "a"), 2).questions == first.questions[:2]
