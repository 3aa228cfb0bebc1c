import json

import pytest
import torch

from genrl.data import PromptError, load_images, load_prompts, prompts_of_round, repeated
from genrl.types import Prompt


def test_three_formats_say_the_same(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\n  a dog \n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "category": "animals", "count": 1}\n\n{"prompt": "a dog"}\n')
    (tmp_path / "p.csv").write_text("prompt,category\na cat,animals\na dog,\n")
    for name in ("p.txt", "p.jsonl", "p.csv"):
        assert [p.text for p in load_prompts(tmp_path / name)] == ["a cat", "a dog"]
    first = load_prompts(tmp_path / "p.jsonl")[0]
    assert first.category == "animals" and first.metadata["count"] == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.txt", "\n \n", "no prompts in it"),
        ("p.jsonl", "", "no prompts in it"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "p.jsonl:2: not JSON"),
        ("p.jsonl", '{"text": "a"}\n', 'non-empty "prompt"'),
        ("p.jsonl", '["a"]\n', 'non-empty "prompt"'),
        ("p.csv", "text\na\n", "p.csv:2"),
        ("p.parquet", "x", "end in .txt"),
    ],
)
def test_what_is_no_prompt_set_says_why(tmp_path, name, content, why):
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=why):
        load_prompts(tmp_path / name)


def test_a_missing_set_names_a_near_one():
    with pytest.raises(PromptError, match="did you mean 'shapes/train'"):
        load_prompts("shapes/trian")


def test_built_in_sets_carry_targets():
    prompts = load_prompts("shapes/held_out")
    assert json.dumps(prompts[0].metadata["objects"]) and prompts[0].category


@pytest.mark.parametrize(("name", "count"), [("mini", 64), ("compose", 240), ("text", 64), ("shapes", 300), ("shapes/train", 2020)])
def test_built_in_sets_are_had_by_name(name, count):
    prompts = load_prompts(name)
    assert len(prompts) == count == len({prompt.text for prompt in prompts}) and all(prompt.category for prompt in prompts)


def test_rounds_walk_through_shuffled_epochs():
    drawn = [i for round_ in range(10) for i in prompts_of_round(20, 6, seed=1, round_=round_)]
    assert [sorted(drawn[k : k + 20]) for k in (0, 20, 40)] == [list(range(20))] * 3
    assert drawn[:20] != drawn[20:40], "each epoch is shuffled anew"
    assert prompts_of_round(20, 6, 1, 7) == drawn[42:48], "a round does not depend on those before"
    assert prompts_of_round(20, 6, 2, 0) != drawn[:6]
    assert len(prompts_of_round(3, 8, 0, 0)) == 8, "more prompts than there are: they come again"


def test_real_images_are_cropped_and_read_in_order(tmp_path):
    from PIL import Image

    for name, colour in (("b.png", (0, 255, 0)), ("a.jpg", (255, 0, 0)), ("c.png", (0, 0, 255))):
        Image.new("RGB", (40, 20), colour).save(tmp_path / name)
    (tmp_path / "note.txt").write_text("no picture")
    images = load_images(tmp_path, 2, (16, 24))
    assert images.shape == (2, 3, 16, 24) and images.dtype == torch.uint8
    assert images[0, 0].float().mean() > 230 and images[1, 1].float().mean() > 230, "a before b"
    with pytest.raises(PromptError, match="no pictures"):
        load_images(tmp_path / "nowhere", 2, (16, 16))


def test_categories_can_be_repeated_or_left_out():
    prompts = [Prompt("a", "easy"), Prompt("b", "hard"), Prompt("c", "hard"), Prompt("d", "other")]
    assert repeated(prompts, {}) == [0, 1, 2, 3]
    assert repeated(prompts, {"hard": 2, "easy": 0}) == [1, 1, 2, 2, 3]
    with pytest.raises(PromptError, match=r"'unheard'; the categories of the prompts are: easy, hard, other"):
        repeated(prompts, {"unheard": 2})
    with pytest.raises(PromptError, match="no prompt"):
        repeated(prompts[:1], {"easy": 0})
