"""A vision-language model as a judge: closed forms from given log-probabilities, what is sent, what is tried again."""

import os
import socket
import time

import pytest
import torch
from chat_server import says, serving, slowly

from genrl.pixels import to_bytes
from genrl.reward import RewardError, about, load_reward
from genrl.rewards.vlm_judge import VlmJudge, VlmPreference

YES = {"Yes": 0.5, " yes": 0.1, "YES": 0.05, "\u0120yes": 0.05, "No": 0.1, "\u2581no": 0.1, "Yesterday": 0.02, "the": 0.01}
QUICK = {"backoff_s": 0.01}


def images(count=1, height=6, width=10):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def score(judge, count=1, prompts=None):
    return judge(images(count), prompts or ["a cat"] * count, [{}] * count)


def judged(reply, **options):
    """The score of one picture by a server that always says the same, and what it was sent."""
    with serving(lambda *_: reply) as seen:
        (found,) = score(VlmJudge(seen.url, "vlm", **QUICK, **options))
    return found, seen


def test_yes_probability_counts_every_spelling_once():
    found, _ = judged(says("Yes", YES))
    assert found == pytest.approx(0.7 / 0.9, abs=1e-9)


@pytest.mark.parametrize(("likely", "expected"), [({"no": 0.9, "maybe": 0.1}, 0.0), ({"yes": 0.3, "maybe": 0.7}, 1.0)])
def test_a_word_that_is_not_among_the_likeliest_has_no_mass(likely, expected):
    assert judged(says("?", likely))[0] == expected


@pytest.mark.parametrize(
    "reply",
    [says("Yes"), says("Hm", {"Hm": 0.9, "Well": 0.1}), (200, b"<html>"), (200, b"[]"), (200, b'{"choices": []}'), says(None)],
    ids=["no logprobs", "neither word", "no JSON", "no object", "no choice", "no text"],
)
@pytest.mark.filterwarnings("ignore:.*no chat completion")
def test_what_cannot_be_read_is_nan(reply):
    assert judged(reply)[0] != judged(reply)[0]


def test_the_question_and_exactly_these_pixels_are_sent():
    prompts = ["a {red} cat", 'a "dog" {prompt}']
    with serving(lambda *_: says("Yes", YES)) as seen:
        VlmJudge(seen.url + "/", "some/vlm", concurrency=1)(images(2), prompts, [{}, {}])
    assert seen.paths == ["/v1/chat/completions"] * 2
    assert [torch.equal(seen.pixels(k)[0], to_bytes(images(2))[k]) for k in (0, 1)] == [True, True]
    assert seen.text(0) == 'Does this figure show "a {red} cat"? Please answer yes or no.'
    assert seen.text(1) == 'Does this figure show "a "dog" {prompt}"? Please answer yes or no.'
    sent = {key: value for key, value in seen.bodies[0].items() if key != "messages"}
    assert sent == {"model": "some/vlm", "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    assert [part["type"] for part in seen.bodies[0]["messages"][0]["content"]] == ["image_url", "text"]
    assert "Authorization" not in seen.headers[0]


def test_a_question_of_ones_own():
    _, seen = judged(says("Yes", YES), question="Is {prompt} there? yes/no")
    assert seen.text() == "Is a cat there? yes/no"
    with pytest.raises(RewardError, match="must hold"):
        VlmJudge("http://127.0.0.1:1/v1", "vlm", question="Is it good?")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        *[("4", 4), ("3.5", 3.5), (" 4/5", 4), ("Grade: 2 out of 5.", 2), ("5 / 5", 5), ("**1**", 1)],
        *[(said, None) for said in ("0", "7", "-3", "", "good", "4 or 5", "4/10", "45", "I give 1 of the 5 points")],
    ],
)
def test_a_grade_is_the_one_number_of_an_answer(said, expected):
    found, seen = judged(says(said), mode="grade")
    assert found == expected if expected is not None else found != found
    assert seen.text() == 'How well does this image show "a cat"? Grade it from 1 to 5, 5 being the best. Answer with the number alone.'


def test_the_expected_grade_where_the_digit_stands():
    digits = {"4": 0.5, " 5": 0.2, "3": 0.1, "9": 0.1, "bad": 0.05}
    expected = (4 * 0.5 + 5 * 0.2 + 3 * 0.1) / 0.8
    assert judged(says("4", digits), mode="grade")[0] == pytest.approx(expected)
    before = {"Score": 0.9, "1": 0.1}, {":": 1.0}
    assert judged(says("Score: 4", *before, digits, tokens=["Score", ":", " 4"]), mode="grade")[0] == pytest.approx(expected)
    assert judged(says("4.5", digits, {".": 1.0}, {"5": 1.0}), mode="grade")[0] == 4.5, "its first digit is not the grade"
    assert judged(says("4", {"four": 1.0}), mode="grade")[0] == 4


def test_a_scale_of_two_digits_is_read_as_text():
    found, seen = judged(says("10", {"1": 0.9, "2": 0.1}, {"0": 1.0}), mode="grade", grades=(0, 10))
    assert found == 10 and "from 0 to 10" in seen.text()


def test_what_it_says_of_itself():
    plain = VlmJudge("http://127.0.0.1:1/v1", "vlm")
    graded = load_reward("genrl.rewards.vlm_judge:VlmJudge", url="http://127.0.0.1:1/v1", model="vlm", mode="grade", grades=[1, 9])
    assert about(plain).bounds == (0, 1) and about(graded).bounds == (1, 9) and about(graded).scale == 9
    preference = VlmPreference("http://127.0.0.1:1/v1", "vlm")
    assert about(preference).kind == "pairwise" and not callable(preference)
    for options in ({"mode": "guess"}, {"grades": (5, 1)}, {"tries": 0}, {"url": "localhost:8000"}, {"tris": 3}):
        with pytest.raises(RewardError):
            load_reward("genrl.rewards.vlm_judge:VlmJudge", **{"url": "http://127.0.0.1:1/v1", "model": "vlm"} | options)


def test_preference_is_of_the_first_place_and_asks_one_order():
    first, second = images(2), 1 - images(2)
    with serving(lambda *_: says("1", {"1": 0.6, " 2": 0.2, "3": 0.2})) as seen:
        found = VlmPreference(seen.url, "vlm", concurrency=1).compare(first, second, ["a cat", "a dog"], [{}, {}])
    assert found == pytest.approx([0.75, 0.75]) and len(seen.bodies) == 2
    for k, prompt in enumerate(("a cat", "a dog")):
        one, two = seen.pixels(k)
        assert torch.equal(one, to_bytes(first)[k]) and torch.equal(two, to_bytes(second)[k]) and prompt in seen.text(k)
    labels = [part.get("text") for part in seen.bodies[0]["messages"][0]["content"]]
    assert labels[0] == "Image 1:" and labels[2] == "Image 2:"
    with serving(lambda *_: says("A", {"A": 1.0})) as seen:
        (unread,) = VlmPreference(seen.url, "vlm").compare(first[:1], second[:1], ["a cat"], [{}])
    assert unread != unread


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_and_failing_servers_are_asked_again(status):
    with serving(lambda number, _: (status, b"busy") if number < 2 else says("Yes", YES)) as seen:
        (found,) = score(VlmJudge(seen.url, "vlm", tries=3, **QUICK))
    assert found == pytest.approx(7 / 9) and len(seen.bodies) == 3
    with serving(lambda *_: (status, b"overloaded")) as seen, pytest.raises(RewardError, match=f"in 3 tries .status {status}: overloaded"):
        score(VlmJudge(seen.url, "vlm", tries=3, **QUICK))
    assert len(seen.bodies) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_is_not_let_in_is_told_at_once(status):
    with serving(lambda *_: (status, b"no such model")) as seen:
        with pytest.raises(RewardError, match=f"answers {status} to a question for the model 'vlm': no such model.*key_env"):
            score(VlmJudge(seen.url, "vlm", **QUICK))
        assert len(seen.bodies) == 1


def test_one_refused_question_is_nan_and_asked_once():
    def answer(_, body):
        return (400, b"too long") if "endless" in body["messages"][0]["content"][-1]["text"] else says("Yes", YES)

    with serving(answer) as seen, pytest.warns(UserWarning, match="refuses a question .400: too long"):
        found = score(VlmJudge(seen.url, "vlm", **QUICK), 3, ["a cat", "an endless cat", "a dog"])
    assert found[0] == found[2] == pytest.approx(7 / 9) and found[1] != found[1] and len(seen.bodies) == 3


def test_a_server_that_hangs_is_given_up():
    with serving(lambda *_: slowly(0.5, says("Yes", YES))) as seen:
        started = time.monotonic()
        with pytest.raises(RewardError, match=r"in 2 tries.*raise read_timeout_s"):
            score(VlmJudge(seen.url, "vlm", tries=2, read_timeout_s=0.05, **QUICK))
        assert time.monotonic() - started < 0.5 and len(seen.bodies) == 2


def test_no_server_says_where_and_what_to_do():
    with socket.socket() as taken:  # bound and not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(RewardError, match=f"{url} in 2 tries.*Start the server there"):
            score(VlmJudge(url, "vlm", tries=2, **QUICK))


def test_answers_keep_their_order_and_no_more_are_asked_at_a_time_than_said():
    def answer(number, body):
        p = int(body["messages"][0]["content"][-1]["text"].split("cat ")[1].split('"')[0]) / 10
        return slowly(0.05 if number % 2 else 0.01, says("?", {"yes": p, "no": 1 - p}))

    prompts = [f"cat {k}" for k in range(1, 9)]
    with serving(answer) as seen:
        found = score(VlmJudge(seen.url, "vlm", concurrency=3), 8, prompts)
    assert found == pytest.approx([k / 10 for k in range(1, 9)]) and 2 <= seen.most <= 3


def test_waits_leave_the_global_seed_alone():
    import random

    random.seed(5)
    expected = random.Random(5).random()
    with serving(lambda number, _: (500, b"") if number < 2 else says("Yes", YES)) as seen:
        score(VlmJudge(seen.url, "vlm", **QUICK))
    assert random.random() == expected


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    _, seen = judged(says("Yes", YES), key_env="JUDGE_KEY")
    assert seen.headers[0]["Authorization"] == "Bearer secret"
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RewardError, match="JUDGE_KEY is not set"):
        VlmJudge("http://127.0.0.1:1/v1", "vlm", key_env="JUDGE_KEY")


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="needs a served model: set GENRL_WEIGHTS=1, GENRL_VLM_URL, GENRL_VLM_MODEL")
def test_a_served_model_tells_red_from_blue():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 224, 224)
    judge = VlmJudge(os.environ["GENRL_VLM_URL"], os.environ["GENRL_VLM_MODEL"])
    right, wrong = judge(red, ["a plain red picture", "a plain blue picture"], [{}, {}])
    assert right > 0.9 > 0.1 > wrong
