"""Each answer to each question is that of a plain computation with transformers, which imports nothing of ours."""

# ruff: noqa: E501
from __future__ import annotations

import pytest
from tests.evaluation import plain_icl as plain

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.evaluation.icl.rows import Encoder
from automodel_cli.evaluation.icl.scores import ask, prepare
from automodel_cli.evaluation.icl.tasks import TASKS
from automodel_cli.evaluation.span_scores import SpanScorer

ANSWER = "\nAnswer: "
# name: (kind, file, worked examples, delimiter), as published
SMALL = {
    "arc_easy": (plain.multiple_choice, "world_knowledge/arc_easy", 10, ANSWER),
    "copa": (plain.multiple_choice, "commonsense_reasoning/copa", 0, " "),
    "commonsense_qa": (plain.multiple_choice, "commonsense_reasoning/commonsense_qa", 10, " "),
    "winogrande": (plain.schema, "language_understanding/winogrande", 0, " "),
    "bigbench_repeat_copy_logic": (plain.language_modeling, "symbolic_problem_solving/bigbench_repeat_copy_logic", 10, " "),
    "simple_arithmetic_withspaces": (plain.language_modeling, "symbolic_problem_solving/simple_arithmetic_withspaces", 10, " "),
}  # fmt: skip
REAL = {
    "arc_easy": (plain.multiple_choice, "world_knowledge/arc_easy", 10, ANSWER),
    "piqa": (plain.multiple_choice, "commonsense_reasoning/piqa", 10, ANSWER),
    "boolq": (plain.multiple_choice, "reading_comprehension/boolq", 10, ANSWER),
    "copa": (plain.multiple_choice, "commonsense_reasoning/copa", 0, " "),
    "openbook_qa": (plain.multiple_choice, "commonsense_reasoning/openbook_qa", 0, " "),
    "winograd": (plain.schema, "language_understanding/winograd_wsc", 0, " "),
    "winogrande": (plain.schema, "language_understanding/winogrande", 0, " "),
    "jeopardy": (plain.language_modeling, "world_knowledge/jeopardy_all", 10, ANSWER),
    "lambada_openai": (plain.language_modeling, "language_understanding/lambada_openai", 0, " "),
    "bigbench_dyck_languages": (
        plain.language_modeling,
        "symbolic_problem_solving/bigbench_dyck_languages",
        10,
        " ",
    ),
}
GENERATION = {
    "gsm8k_cot": ("symbolic_problem_solving/gsm8k", {"shots": 3, "prefix": "Q: ", "delimiter": "\nA: Let's think step by step. ", "mark": " #### ", "stops": ["\n\n", "Q:"]}),
    "triviaqa_small": ("world_knowledge/triviaqa_small", {"shots": 3, "prefix": "", "delimiter": " ", "mark": "", "stops": []}),
}  # fmt: skip


@pytest.fixture(scope="module")
def put(tiny_hf):
    """Our answers to one task: ``put(bundle, name, limit)``."""
    loaded = load_model(tiny_hf.folder)
    engine, encoder = SpanScorer(loaded.model), Encoder(loaded.tokenizer)

    def put(folder, name, limit=None):
        data = Bundle(folder).load(TASKS[name])
        questions = prepare(TASKS[name], data, encoder, context=loaded.model.max_seq_len, limit=limit)
        return ask(questions, engine, loaded.tokenizer)

    return put


def compare(found, tiny_hf, path, function, shots, delimiter, limit=None):
    items = plain.read(path, limit)
    assert len(found.answers) == len(items)
    for index, item in enumerate(items):
        answer, losses = function(tiny_hf.model, tiny_hf.tokenizer, items, index, shots, delimiter)
        assert found.losses[index] == pytest.approx(losses, rel=2e-5), (index, item)
        assert found.answers[index] == answer, (index, item)
        right = answer if function is plain.language_modeling else answer == item["gold"]
        assert found.correct[index] == right


@pytest.mark.parametrize("name", SMALL)
def test_our_own_questions(put, tiny_hf, small_bundle, name):
    function, file, shots, delimiter = SMALL[name]
    found = put(small_bundle, name)
    compare(found, tiny_hf, small_bundle / "eval_data" / f"{file}.jsonl", function, shots, delimiter)
    if name == "bigbench_repeat_copy_logic":
        assert 0 < sum(found.correct) < len(found.correct)  # both outcomes are there to be compared


@pytest.mark.parametrize("name", REAL)
def test_published_questions(put, tiny_hf, real_bundle, name):
    function, file, shots, delimiter = REAL[name]
    found = put(real_bundle, name, 6)
    compare(found, tiny_hf, real_bundle / f"{file}.jsonl", function, shots, delimiter, 6)


def test_room_for_an_answer(tiny_hf, small_bundle):
    """As many tokens as the longest answer of all the data; in a short context at most half of it."""
    encoder = Encoder(load_model(tiny_hf.folder).tokenizer)
    data = Bundle(small_bundle).load(TASKS["gsm8k_cot"])
    rooms = [prepare(TASKS["gsm8k_cot"], data, encoder, context=c, limit=2).answer_tokens for c in (None, 192, 20)]
    texts = [f"{item['chain_of_thought']} #### {item['answer']}" for item in data.items]
    longest = max(len(tiny_hf.tokenizer(text)["input_ids"]) for text in texts)
    assert rooms == [longest + 10, longest + 10, 10]


@pytest.mark.parametrize("name", GENERATION)
def test_written_answers(put, tiny_hf, small_bundle, name):
    file, task = GENERATION[name]
    found = put(small_bundle, name)
    items = plain.read(small_bundle / "eval_data" / f"{file}.jsonl")
    for index in range(len(items)):
        right, text = plain.generation(tiny_hf.model, tiny_hf.tokenizer, items, index, task)
        assert text.startswith(found.answers[index].removesuffix("\ufffd"))  # ours ends at a stop
        assert found.correct[index] == right
