"""Files of the published formats, in miniature; and files that are wrong."""

import copy
import json
import random

import pytest
from tasks import read_examples, score

from model.errors import InputError

HOTPOT = {
    "_id": "5a",
    "question": "Who wrote it?",
    "answer": "Ann",
    "supporting_facts": [["B", 1], ["A", 0], ["A", 7]],
    "context": [["A", ["Ann is a poet.", " She lives."]], ["B", ["It is a book.", " Ann wrote it."]]],
}
HOTPOT_2 = {**HOTPOT, "question": "And this?", "context": [["C", ["C is a song."]], ["D", ["D was one."]]]}
MULTIHOP = {
    "query": "Which of the two, by The Verge?",
    "answer": "Yes",
    "question_type": "comparison_query",
    "evidence_list": [
        {"title": "T2", "url": "u2", "fact": "Two is big."},
        {"title": "T1", "url": "u1", "fact": "One is not."},
        {"title": "T1", "url": "u1", "fact": "Reworded."},
    ],
}
NULL_QUERY = {"query": "Who?", "answer": "Insufficient information.", "question_type": "null_query", "evidence_list": []}
CORPUS = [
    {"title": f"T{i}", "url": f"u{i}", "source": "The Verge", "published_at": "2023-09-28", "body": body}
    for i, body in enumerate(["Zero.", "One. One is not. More.", "Two is big. Yes."])
]
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rome",
            "paragraphs": [
                {
                    "context": "Rome is old. It lies on the Tiber. It is big.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "On which river?",
                            "is_impossible": False,
                            "answers": [{"text": "Tiber", "answer_start": 28}, {"text": "the Tiber", "answer_start": 24}],
                        },
                        {"id": "2", "question": "How old?", "is_impossible": True, "answers": [], "plausible_answers": []},
                    ],
                },
                {"context": "Oslo is far.", "qas": [{"id": "3", "question": "Is it?", "answers": []}]},
            ],
        }
    ],
}


def write(folder, value, name="file.json"):
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(folder, value, format=None, **more):
    return list(read_examples(write(folder, value), format, **more))


def evidence(document, index=0):
    return [document.text[a:b] for a, b in document.questions[index].evidence]


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ({"context": "Some\ntext. ", "query": "Where is John? ", "target": "garden"}, "garden"),
        ([{"input": "Some\ntext. ", "question": "Where is John?", "target": "garden"}], "garden"),
        ('{"context": "Some\\ntext. ", "question": "Where is John?", "answer": ["a", "b"]}\n\n', ("a", "b")),
        ([{"context": "Some\ntext. ", "input": "-", "query": "Where is John?", "target": 3}], "3"),
    ],
)
def test_plain(tmp_path, value, target):
    (document,) = read(tmp_path, value)
    assert document.text == "Some\ntext. "
    assert (document.questions[0].query, document.questions[0].target) == ("Where is John?", target)


PLAIN = {"context": "c", "query": "q", "target": "t"}
LONGBENCH = {
    "input": "Who wrote it? ",
    "context": "Ann wrote it.",
    "answers": ["Ann", "Ann B.", "Ann"],
    "dataset": "hotpotqa_e",
    "all_classes": None,
    "length": 3,
}
CHOICES = {"choice_A": "Bob", "choice_B": "Ann ", "choice_C": "Eve", "choice_D": "Joe"}
LONGBENCH_2 = {"context": "Ann wrote it.", "question": "Who wrote it?", "answer": "B", "difficulty": "easy", **CHOICES}
RULER = {
    "index": 0,
    "input": "A special number for Oslo is 12.\nAnother is 34.\nWhat are all of them?",
    "outputs": ["12", "34"],
}
RULER_QA = {
    "input": "Answer the question based on the given documents. Only.\n\nAnn wrote it.\n\nQuestion: Who wrote it? Answer:",
    "answer_prefix": " Answer:",
    "outputs": ["Ann", "Ann B."],
}


def test_longbench(tmp_path):
    (document,) = read(tmp_path, [LONGBENCH])
    (question,) = document.questions
    assert (document.text, question.task, question.query) == ("Ann wrote it.", "longbench", "Who wrote it?")
    assert (question.target, question.alternatives) == ("Ann", ("Ann B.",))
    assert score(question, "Ann B.")["score"] == 1 and score(question, "Ann wrote")["score"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The correct answer is (B).", 1),
        ("the **correct answer is B**", 1),
        ("(B) Ann", 1),
        ("B", 1),
        ("B. Ann", 1),
        ("Ann.", 1),
        ("A", 0),
        ("Both (A) and (B) are.", 0),
        ("B is a letter", 0),
        ("Bob", 0),
        ("", 0),
    ],
)
def test_longbench_2(tmp_path, answer, right):
    (document,) = read(tmp_path, [LONGBENCH_2])
    (question,) = document.questions
    assert question.task == "longbench_v2" and question.query.startswith(
        "Who wrote it?\nChoices:\n(A) Bob\n(B) Ann\n(C) Eve"
    )
    assert score(question, answer)["score"] == right


def test_ruler(tmp_path):
    (document,) = read(tmp_path, [RULER])
    (question,) = document.questions
    assert document.text == "A special number for Oslo is 12.\nAnother is 34." and question.query == "What are all of them?"
    assert score(question, "They are 34 and 5.")["score"] == 0.5 and score(question, "12, 34")["score"] == 1
    begun = RULER["input"] + " The special magic numbers for Oslo mentioned in the provided text are"
    assert read(tmp_path, [RULER | {"input": begun}]) == [document]
    (document,) = read(tmp_path, [RULER_QA])
    (question,) = document.questions
    assert question.query == "Who wrote it?" and "Ann wrote it." in document.text and "Who" not in document.text
    assert score(question, "It was Ann")["score"] == 1  # either is right


def test_plain_alternatives_and_evidence(tmp_path):
    evidence_of = ["Film — Ann wrote\nit.  Bob sang.", "not there", "It rained."]
    text = "It rained. Much.\n\nFilm — Ann wrote it. Bob sang.\n\nEnd."
    common = {"context": text, "query": "Who wrote?", "evidence": evidence_of}
    (one,) = read(tmp_path, [{**common, "answers": ["Ann", "Ann B."]}])
    assert (one.questions[0].target, one.questions[0].alternatives) == ("Ann", ("Ann B.",))
    assert evidence(one) == ["It rained.", "Film — Ann wrote it.", "Bob sang."]
    (two,) = read(tmp_path, [{**common, "target": "Ann", "answers": ["Ann", "Ann B."]}])
    assert two == one
    assert score(one.questions[0], "Ann B.")["exact_match"] == 1
    for other in ("a page", 3, [1, 2], None, []):
        assert read(tmp_path, [{**common, "target": "Ann", "evidence": other}])[0].questions[0].evidence == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("choices", ["a", "b"]),
        ("options", {"A": "a"}),
        ("A", "one"),
        ("choice_a", "one"),
        ("option1", "one"),
        ("answer_choices", ["a"]),
        ("answer_aliases", ["a"]),
        ("outputs", ["a"]),
        ("endings", ["a", "b"]),
    ],
)
def test_choices_that_cannot_be_scored_are_refused(tmp_path, name, value):
    with pytest.raises(InputError, match=f"record 2: the field '{name}' looks like choices"):
        read(tmp_path, [PLAIN, {**PLAIN, name: value}])
    assert len(read(tmp_path, [{**PLAIN, name: None, "n_options": 4, "answer_start": 7, "id": "A", "title": "x"}])) == 1


def test_json_lines_keep_their_order(tmp_path):
    lines = [json.dumps({"context": f"c\u2028{i}", "query": "q", "target": "t"}, ensure_ascii=False) for i in range(3)]
    assert [d.text for d in read(tmp_path, "\n".join(lines))] == ["c\u20280", "c\u20281", "c\u20282"]


def test_hotpotqa(tmp_path):
    (document,) = read(tmp_path, [HOTPOT])
    assert document.text == "A\nAnn is a poet. She lives.\n\nB\nIt is a book. Ann wrote it."
    assert evidence(document) == ["Ann is a poet.", "Ann wrote it."]
    assert document.questions[0].answer == "Ann" and document.questions[0].task == "hotpotqa"


def test_hotpotqa_lengthened(tmp_path):
    def count(text):
        return len(text.split())

    documents = read(tmp_path, [HOTPOT, HOTPOT_2], n_tokens=20, count_tokens=count)
    assert [count(d.text) for d in documents] in ([19, 16], [19, 17], [20, 16], [20, 17])  # own passages: 15 and 9
    assert evidence(documents[0]) in (["Ann is a poet.", "Ann wrote it."], ["Ann wrote it.", "Ann is a poet."])
    assert documents == read(tmp_path, [HOTPOT, HOTPOT_2], n_tokens=20, count_tokens=count)
    assert len(read(tmp_path, [HOTPOT, HOTPOT_2], n_tokens=10, count_tokens=count)) == 1  # the first is longer itself
    with pytest.raises(InputError, match="fits in 3 tokens"):
        read(tmp_path, [HOTPOT, HOTPOT_2], n_tokens=3, count_tokens=count)


def columns(pairs, first, second):
    return {first: [pair[0] for pair in pairs], second: [pair[1] for pair in pairs]}


HOTPOT_COLUMNS = {
    **HOTPOT,
    "context": columns(HOTPOT["context"], "title", "sentences"),
    "supporting_facts": columns(HOTPOT["supporting_facts"], "title", "sent_id"),
}
SQUAD_COLUMNS = {
    "context": SQUAD["data"][0]["paragraphs"][0]["context"],
    "question": "On which river?",
    "answers": {"text": ["Tiber", "the Tiber"], "answer_start": [28, 24]},
}


def test_files_in_columns_are_read_alike(tmp_path):
    assert read(tmp_path, [HOTPOT_COLUMNS]) == read(tmp_path, [HOTPOT])
    unanswered = {**SQUAD_COLUMNS, "answers": {"text": [], "answer_start": []}}
    assert read(tmp_path, [SQUAD_COLUMNS, unanswered]) == read(tmp_path, SQUAD)


def test_multihop_rag(tmp_path):
    write(tmp_path, CORPUS, "corpus.json")
    (document,) = read(tmp_path, [MULTIHOP, NULL_QUERY])
    assert document.text.startswith("T2\nThe Verge\n2023-09-28\n\nTwo is big. Yes.\n\nT1\n")
    assert evidence(document) == ["Two is big.", "One is not."]
    elsewhere = write(tmp_path, CORPUS, "articles.json")
    both = read(tmp_path, [MULTIHOP, NULL_QUERY], corpus=elsewhere, n_tokens=1000, count_tokens=len)
    assert [d.questions[0].answer for d in both] == ["Yes", "Insufficient information."]
    assert all(len(d.text) == len(both[0].text) and "Zero." in d.text for d in both)
    assert set(evidence(both[0])) == {"Two is big.", "One is not."} and evidence(both[1]) == []


def test_squad(tmp_path):
    (document,) = read(tmp_path, SQUAD)
    (question,) = document.questions
    assert (question.query, question.target, question.alternatives) == ("On which river?", "Tiber", ("the Tiber",))
    assert evidence(document) == ["It lies on the Tiber."]
    (long,) = read(tmp_path, SQUAD, n_tokens=61, count_tokens=len)
    assert "Oslo is far." in long.text and evidence(long) == ["It lies on the Tiber."]


def changed(record, **changes):
    return [{key: value for key, value in {**record, **changes}.items() if value != "-"}]


def squad_answer(**changes):
    value = json.loads(json.dumps(SQUAD))
    value["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(changes)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (" ", "is empty"),
        ("[]", "no list of records"),
        ("3", "no list of records"),
        ("[1, {", "file.json, line 1: this is not JSON"),
        ('{"context": "c",\n"query" "q"}', "line 1: this is not JSON .*line 2 column 9"),
        ('{"context": "c", "query": "q", "target": "t"}\n{"con', "file.json, line 2: this is not JSON"),
        ('{"a": 1}\n[2]', "line 2: this is a list, not an object"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ([PLAIN, 7], "record 2: this is a whole number, not an object"),
        (
            changed(PLAIN, context="-"),
            "record 1: the field 'context' or 'input' is missing .fields there: 'query', 'target'",
        ),
        (changed(PLAIN, query="-"), "'query' or 'question' is missing"),
        (changed(PLAIN, query=None), "record 1: the field 'query' is null"),
        (changed(PLAIN, target="-"), "record 1: the field 'target' or 'answer' is missing"),
        (changed(PLAIN, target=None), "record 1: the field 'target' is null"),
        (changed(PLAIN, target="-", answer=None), "record 1: the field 'answer' is null"),
        (changed(PLAIN, target=1.5), "field 'target': this is a number, not text"),
        (changed(PLAIN, target=["a", 2]), r"target\[1\]: this is a whole number, not text"),
        (changed(PLAIN, target="-", answer=["a", 2]), r"answer\[1\]: this is a whole number, not text"),
        (changed(PLAIN, target=["a", " "]), r"target\[1\]: this is empty"),
        (changed(PLAIN, target=" "), "field 'target': this is empty"),
        (changed(PLAIN, target="-", answer=""), "field 'answer': this is empty"),
        (changed(PLAIN, context=""), "field 'context': this is empty"),
        (changed(PLAIN, query="\ud800"), "field 'query': the text holds half of a surrogate"),
        (changed(PLAIN, answers="t"), "field 'answers': this is text, not a list"),
        (changed(PLAIN, target=["a"], answers=["b"]), "alternatives to one text, and 'target' is a list"),
        (changed(PLAIN, target="-", answers=[]), "field 'answers': this list is empty"),
        (changed(PLAIN, target="-", answers=["a", ""]), r"answers\[1\]: this is empty"),
        (changed(LONGBENCH, dataset="gov_report"), "LongBench's 'gov_report' has a measure of its own"),
        (changed(LONGBENCH, all_classes=["a"]), "'all_classes' asks for one of some classes"),
        (changed(LONGBENCH, answers=[]), "field 'answers': this list is empty"),
        (changed(LONGBENCH_2, answer="E"), "'E' is none of A, B, C and D"),
        (changed(LONGBENCH_2, choice_C="-"), "the field 'choice_C' is missing"),
        (changed(RULER, input="All in one line?"), "a question on a line of its own is missing"),
        (changed(RULER, outputs=[3]), r"outputs\[0\]: this is a whole number, not text"),
        (changed(HOTPOT, answer="-"), "record 1: the field 'answer' is missing"),
        (changed(HOTPOT, answer=None), "record 1: the field 'answer' is null"),
        (changed(HOTPOT, answer=""), "record 1, field 'answer': this is empty"),
        (changed(HOTPOT, question=" "), "record 1, field 'question': this is empty"),
        (changed(HOTPOT, context=[["", [""]]]), r"context\[0\]: this is empty"),
        (changed(HOTPOT, supporting_facts="-"), "field 'supporting_facts' is missing"),
        (changed(HOTPOT, supporting_facts=[["A"]]), r"supporting_facts\[0\]: a list of 1"),
        (changed(HOTPOT, supporting_facts=[["A", "0"]]), r"supporting_facts\[0\]: this is text, not a whole number"),
        (changed(HOTPOT, context=[["A", "text"]]), r"context\[0\], sentences: this is text, not a list"),
        (changed(HOTPOT, context=[["A", [None]]]), r"sentence 0: this is null, not text"),
        (changed(HOTPOT, context=[["A"]]), r"context\[0\]: a list of 1"),
        (changed(HOTPOT, context="text"), "field 'context': this is text, not a list"),
        (changed(HOTPOT, context=[]), "no question with passages"),
        (changed(HOTPOT, context={"title": ["A"], "sentences": []}), "'title' has 1 entries and 'sentences' 0"),
        (changed(HOTPOT_COLUMNS, supporting_facts={"title": ["A"]}), "supporting_facts: the field 'sent_id' is missing"),
        (changed(SQUAD_COLUMNS, answers={"text": ["Tiber"], "answer_start": [3]}), r"answers\[0\]: the text 'Tiber'"),
        (changed(SQUAD_COLUMNS, answers={"text": [""], "answer_start": [3]}), r"answers\[0\]: this is empty"),
        (changed(SQUAD_COLUMNS, question=" "), "has no question with passages"),
        (changed(SQUAD_COLUMNS, context="\n"), "field 'context': this is empty"),
        (squad_answer(text=""), r"answers\[0\], field 'text': this is empty"),
        ([MULTIHOP], "corpus.json cannot be read"),
        ({"data": {}}, "field 'data': this is an object, not a list"),
        ({"data": [{"title": "x"}]}, r"data\[0\]: the field 'paragraphs' is missing"),
        ({"data": [{"paragraphs": [{"context": "c"}]}]}, r"paragraphs\[0\]: the field 'qas' is missing"),
        (squad_answer(answer_start=3), r"answers\[0\]: the text 'Tiber' does not stand at character 3"),
        (squad_answer(answer_start="28"), "field 'answer_start': this is text, not a whole number"),
    ],
)
def test_bad_files_are_named_with_record_and_field(tmp_path, value, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, value)


def test_a_wrong_record_is_told_before_the_first_document(tmp_path):
    documents = read_examples(write(tmp_path, [PLAIN, PLAIN, {**PLAIN, "query": None}]))
    with pytest.raises(InputError, match="record 3"):
        next(documents)


def test_other_bad_input(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_examples(tmp_path / "gone.json"))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_examples(tmp_path))
    (tmp_path / "latin.json").write_bytes(b'{"context": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_examples(tmp_path / "latin.json"))
    with pytest.raises(InputError, match="no format 'xml'"):
        read(tmp_path, [PLAIN], "xml")
    for record, format in ((PLAIN, "plain"), (LONGBENCH, "longbench"), (LONGBENCH_2, "longbench_v2"), (RULER, "ruler")):
        with pytest.raises(InputError, match=f"'{format}' documents have their own"):
            read(tmp_path, [record], n_tokens=100, count_tokens=len)
    write(tmp_path, CORPUS[:1], "corpus.json")
    with pytest.raises(InputError, match=r"evidence_list\[0\]: the corpus has no article 'u2'"):
        read(tmp_path, [MULTIHOP])
    write(tmp_path, [{"title": "", "url": "u", "body": " "}], "corpus.json")
    with pytest.raises(InputError, match="corpus.json, record 1: this is empty"):
        read(tmp_path, [MULTIHOP])


JUNK = [None, True, -1, 10**30, 1.5, float("inf"), "", "x", "\n", "\ud800", [], [1], {}, {"a": 1}, [[]], ["x"], "Tiber"]
FIELDS = ["choices", "answers", "query", "question", "target", "context", "input", "evidence", "outputs", "data", "options"]


def damage(value, rng):
    """One spot of a JSON value becomes something else, is gone, or has a neighbour."""
    while isinstance(value, (dict, list)) and value:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.3:
            if rng.random() < 0.2:
                del value[key]
            elif isinstance(value, dict) and rng.random() < 0.3:
                value[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(JUNK))
            else:
                value[key] = copy.deepcopy(rng.choice(JUNK))
            return
        value = value[key]


@pytest.mark.parametrize("n_tokens", [None, 200])
def test_damaged_files_give_whole_documents_or_a_sentence(tmp_path, n_tokens):
    sound = [[HOTPOT, HOTPOT_2], [HOTPOT_COLUMNS], [MULTIHOP, NULL_QUERY], SQUAD, [SQUAD_COLUMNS], [PLAIN], [LONGBENCH]]
    sound += [[LONGBENCH_2], [RULER]]
    n_documents = 0
    for seed in range(400):
        rng = random.Random(seed)
        value, corpus = copy.deepcopy(rng.choice(sound)), copy.deepcopy(CORPUS)
        for _ in range(rng.choice([1, 1, 2, 3])):
            damage(corpus if rng.random() < 0.1 else value, rng)
        write(tmp_path, corpus, "corpus.json")
        try:
            for document in read_examples(write(tmp_path, value), n_tokens=n_tokens, count_tokens=len):
                n_documents += 1
                assert document.text.strip() and document.questions
                for question in document.questions:
                    assert question.query.strip() and question.answer.strip()
                    assert 0 <= score(question, "x " + question.answer)["score"] <= 1
                    assert all(0 <= start < end <= len(document.text) for start, end in question.evidence)
        except InputError as error:
            assert "\n" not in str(error)
    assert n_documents > 20


def test_a_question_without_passages_that_no_other_lengthens_is_left_out(tmp_path):
    for records in ([{**HOTPOT, "context": []}], [{**HOTPOT, "context": [], "supporting_facts": []}] * 2):
        with pytest.raises(InputError, match="no question with passages that fits in 90 tokens"):
            read(tmp_path, records, n_tokens=90, count_tokens=len)
    documents = read(tmp_path, [{**HOTPOT, "context": []}, HOTPOT_2], n_tokens=35, count_tokens=len)
    assert [document.questions[0].query for document in documents if document.text] == [HOTPOT["question"], "And this?"]
    for n_tokens in (35, 5):
        with pytest.raises(InputError, match="no question with passages"):
            read(tmp_path, [{**HOTPOT, "context": []}, {**HOTPOT, "context": []}], n_tokens=n_tokens, count_tokens=len)
