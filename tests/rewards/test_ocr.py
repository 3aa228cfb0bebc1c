"""The published scoring rule on texts, and the real reader on rendered words."""

import math

import pytest
from PIL import Image, ImageDraw, ImageFont

from genrl.pixels import from_pil
from genrl.reward import RewardError, check_scores, load_reward
from genrl.rewards.ocr import Ocr, edit_distance, plain, similarity, target

NAME = "genrl.rewards.ocr:Ocr"
pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")


def drawn(*lines: str):
    picture = Image.new("RGB", (240, 64 * len(lines)), "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((12, 64 * row + 12), line, fill="black", font=ImageFont.load_default(34))
    return from_pil([picture])


@pytest.fixture(scope="module")
def reward() -> Ocr:
    return load_reward(NAME)


def test_rendered_words(reward, monkeypatch):
    prompts = ['a sign that says "Grand Opening"', 'a sign that says "Bicycle"', "a sign"]
    images = drawn("Grand", "Opening").expand(3, -1, -1, -1)
    right, wrong, unasked = check_scores("ocr", reward(images, prompts, [{}, {}, {}]), 3).tolist()
    assert right == 1 and wrong < 0.5 and math.isnan(unasked)
    assert reward(images[:1], ["a sign"], [{"text": "opening"}]) == [1.0]
    monkeypatch.setattr(reward, "strict", True)
    assert reward(images[:1], ["a sign"], [{"text": "opening"}]) == [pytest.approx(1 - 5 / 7)]


def test_no_text_is_zero_and_a_failure_is_nan(reward, monkeypatch):
    assert reward(drawn(""), ['"word"'], [{}]) == [0.0]

    def fails(picture):
        raise ValueError("broken reader")

    monkeypatch.setattr(reward, "reader", fails)
    with pytest.warns(UserWarning, match="ValueError: broken reader"):
        assert check_scores("ocr", reward(drawn("word"), ['"word"'], [{}]), 1).isnan().all()


@pytest.mark.parametrize(
    ("prompt", "metadata", "text"),
    [
        ('says "one" and "two"', {}, "one"),
        ('says "one" and "two"', {"text": "three"}, "three"),
        ("says “one”", {}, "one"),
        ('only one " mark', {}, ""),
        ('empty ""', {}, ""),
        ("it's 'single'", {"text": None}, ""),
    ],
)
def test_the_target(prompt, metadata, text):
    assert target(prompt, metadata) == text


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("abc", "xabcx", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("found", "options", "score"),
    [
        ("hello", {}, 1),
        ("hallo", {}, 0.8),
        ("", {}, 0),
        ("completelydifferent", {}, 0),
        ("xxhelloxxxx", {}, 1),
        ("xxhelloxxxx", {"strict": True}, 0),
        ("hellox", {"strict": True}, 0.8),
        ("xxhelloxxxx", {"max_extra_chars": 6}, 1),
        ("xxhelloxxxx", {"max_extra_chars": 5}, 0.8),
        ("xxhelloxxxx", {"max_extra_chars": 0}, 0),
        ("hallo", {"max_extra_chars": 0}, 0.8),
    ],
)
def test_the_score_of_texts(found, options, score):
    assert similarity(found, "hello", **options) == pytest.approx(score)


def test_case_and_space_do_not_count():
    assert plain(" Grand\n OPENING ") == "grandopening"


def test_options_that_exclude_each_other_and_a_missing_package(monkeypatch):
    with pytest.raises(RewardError, match="counts every extra character already"):
        load_reward(NAME, strict=True, max_extra_chars=2)
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    with pytest.raises(RewardError, match=r"pip install 'genrl-image\[ocr\]'"):
        load_reward(NAME)
