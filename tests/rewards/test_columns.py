"""What reward functions are called with: columns, messages, TRL's shape; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.chat import save_chat_model

from tokenenv.data import Prompt
from tokenenv.models import load_frozen
from tokenenv.rewards import Episode, FunctionReward

EOS, END = 2, 38
USER = ({"role": "user", "content": "w4 w5"},)
RENDERED = "<|im_start|> user w4 w5 <|im_end|> <|im_start|> assistant"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_frozen(save_chat_model(tmp_path_factory.mktemp("chat") / "m"))


def episode(model, content, response, **columns):
    ids = np.array([*map(int, response.replace("w", "").split()), END])
    text = content if isinstance(content, str) else model.chat.prompt(content)
    return Episode(model.encode(text), ids, True, Prompt(content, columns))


def called_with(function_of_log, model, episodes):
    """The arguments that a function gets, by its own `log`."""
    log = []
    FunctionReward(function_of_log(log), "reward function 'f'", model)(episodes)
    (seen,) = log
    return seen


@pytest.fixture
def texts(model):
    return [
        episode(model, "w4", "w7 w8", answer="w7", level=1),
        episode(model, "w4", "w9", answer="w9", level=2),
    ]


@pytest.fixture
def talks(model):
    return [episode(model, USER, "w7 w8", answer="w7"), episode(model, USER, "w9", answer="w9")]


def zeros(log, *names):
    """Put the arguments of these names into the log, and return 0 for each of two responses."""

    def put(values):
        log.append({name: values[name] for name in names})
        return [0.0, 0.0]

    return put


def test_named_parameters_get_the_columns_of_these_names_and_kwargs_all(model, texts):
    def named(log):
        put = zeros(log, "p", "r", "answer")
        return lambda p, r, answer: put(locals())

    def everything(log):
        put = zeros(log, "p", "r", "columns")
        return lambda p, r, **columns: put(locals())

    both = {"p": ["w4", "w4"], "r": ["w7 w8", "w9"]}
    assert called_with(named, model, texts) == {**both, "answer": ["w7", "w9"]}
    columns = {"answer": ["w7", "w9"], "level": [1, 2]}
    assert called_with(everything, model, texts) == {**both, "columns": columns}


def test_a_parameter_with_a_default_may_go_without_a_column(model, texts):
    def optional(log):
        put = zeros(log, "answer", "colour")
        return lambda prompts, responses, answer=None, colour="red": put(locals())

    seen = called_with(optional, model, texts)
    assert seen == {"answer": ["w7", "w9"], "colour": "red"}
    some = [texts[0], episode(model, "w4", "w9")]
    assert called_with(optional, model, some)["answer"] == ["w7", None]


def test_responses_can_go_by_name_alone(model, texts):
    def by_name(log):
        put = zeros(log, "responses", "answer", "response_tokens")
        return lambda responses, answer, response_tokens: put(locals())

    assert called_with(by_name, model, texts) == {
        "responses": ["w7 w8", "w9"],
        "answer": ["w7", "w9"],
        "response_tokens": [["w7", "w8", ""], ["w9", ""]],
    }


def test_conversations_reach_functions_as_text_and_as_messages(model, talks):
    def named(log):
        put = zeros(log, "prompts", "messages")
        return lambda prompts, responses, messages: put(locals())

    def everything(log):
        put = zeros(log, "columns")
        return lambda prompts, responses, **columns: put(locals())

    seen = called_with(named, model, talks)
    assert [prompt.strip() for prompt in seen["prompts"]] == [RENDERED] * 2
    assert seen["messages"] == [list(USER)] * 2
    columns = {"answer": ["w7", "w9"], "messages": [list(USER)] * 2}
    assert called_with(everything, model, talks) == {"columns": columns}


def test_trls_shape_gets_texts_for_texts_and_messages_for_conversations(model, texts, talks):
    def trl(log):
        put = zeros(log, "completions", "kwargs")
        return lambda completions, **kwargs: put(locals())

    seen = called_with(trl, model, texts)
    assert seen["completions"] == ["w7 w8", "w9"]
    assert seen["kwargs"] == {
        "prompts": ["w4", "w4"],
        "completion_ids": [[7, 8, END], [9, END]],
        "answer": ["w7", "w9"],
        "level": [1, 2],
    }
    seen = called_with(trl, model, talks)
    answers = [[{"role": "assistant", "content": text}] for text in ("w7 w8", "w9")]
    assert seen["completions"] == answers and seen["kwargs"]["prompts"] == [list(USER)] * 2


def test_a_function_written_for_trl_with_prompts_and_a_column(model, talks):
    def f(prompts, completions, answer, **kwargs):
        return [float(c[0]["content"].startswith(a)) for c, a in zip(completions, answer)]  # noqa: B905

    assert FunctionReward(f, "f", model)(talks).raw.tolist() == [1.0, 1.0]


def lacking(prompts, responses, answer):
    return []


def second(question, answer):
    return []


def talking(prompts, responses, messages):
    return []


def trl(completions, **kwargs):
    return []


def trainers(completions, trainer_state):
    return []


def everything(prompts, responses, **columns):
    return []


def one_by_one(prompt, response, **columns):
    return []


@pytest.mark.parametrize(
    ("function", "columns", "words"),
    [
        (lacking, [{}, {}], r"asks for the column 'answer', which no prompt has .*Columns: none"),
        (lacking, [{"ansver": 1}] * 2, r"Columns: 'ansver'. Add it to every row"),
        (lacking, [{"answer": 1}, {}], r"which 1 of 2 prompts lack .the first: 'w5'"),
        (
            second,
            [{"answer": 1}] * 2,
            r"calls one 'answer', as a column .*def f\(responses, answer",
        ),
        (talking, [{}, {}], r"asks for messages, which no prompt has"),
        (trl, [{"completions": 1}] * 2, r"have a column 'completions'.*rename the column"),
        (lacking, [{"answer": 1, "messages": 2}] * 2, ""),
        (talking, [{"messages": 2}] * 2, r"have a column 'messages'"),
        (trainers, [{}, {}], r"asks for the column 'trainer_state'"),
        (everything, [{"responses": 1}, {}], r"'responses' and has a .*rename the column.*, /, …"),
        (one_by_one, [{"response": 1}] * 2, r"'response' and has a \*\*kwargs, which can't hold"),
        (one_by_one, [{"responses": 1}] * 2, ""),
        (lacking, [{"answer": 1, "responses": 2}] * 2, ""),
    ],
)
def test_what_a_function_asks_for_is_checked_at_the_start(model, function, columns, words):
    reward = FunctionReward(function, "reward function 'f'", model)
    origins = [Prompt(text, given) for text, given in zip(("w4", "w5"), columns, strict=True)]
    if not words:
        reward.check_prompts(origins)
        return
    with pytest.raises(ValueError, match=f"reward function 'f' {words}|{words}"):
        reward.check_prompts(origins)


def test_a_column_may_be_called_like_a_parameter_that_has_no_name(model):
    def f(prompts, responses, /, **columns):
        return [float(given == text) for given, text in zip(columns["responses"], responses)]  # noqa: B905

    rows = [episode(model, "w4", "w7", responses="w7"), episode(model, "w4", "w9", responses="w7")]
    reward = FunctionReward(f, "f", model)
    reward.check_prompts([row.origin for row in rows])
    assert reward(rows).raw.tolist() == [1.0, 0.0]


def test_without_columns_a_function_that_asks_for_none_is_left_alone(model):
    for function in (
        lambda p, r: [],
        lambda p, r, **columns: [],
        lambda *texts: [],
        lambda completions: [],
        lambda prompts, responses, answer=None: [],
        len,
        np.add,
    ):
        FunctionReward(function, "f", model).check_prompts([Prompt("w4"), Prompt(USER)])


def test_an_episode_of_nowhere_lacks_columns(model):
    bare = Episode(np.array([1, 4]), np.array([7, EOS]), True)
    with pytest.raises(ValueError, match="asks for the column 'answer'"):
        FunctionReward(lacking, "f", model)([bare])
    assert bare.prompt_key == Episode(np.array([1, 4]), np.array([9]), False).prompt_key
    other = Episode(bare.prompt, bare.response, True, Prompt("w4", {"answer": 1}))
    assert other.prompt_key != bare.prompt_key
