"""Pictures on disk: drawn once, read back, and adopted from elsewhere."""

import json

import pytest
import torch
from PIL import Image

from genrl.comparison.pictures import adopt, assigned, by_prompt, draw, in_blocks, name_of, seed_of
from genrl.comparison.subjects import Subject, SubjectError, subjects
from genrl.types import Prompt

PROMPTS = [Prompt("a red circle"), Prompt("two blue squares"), Prompt("a green ring")]


def colour(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)


def levels(folder, prompts=3, images=2):
    return [(pictures[:, 0, 0, 0] * 255).round().int().tolist() for pictures in by_prompt(folder, prompts, images)]


def test_a_seed_belongs_to_a_prompt_and_an_image():
    found = {seed_of(seed, prompt, image) for seed in (0, 1) for prompt in ("a", "b", "a\n1") for image in (0, 1, 10)}
    assert len(found) == 18 and all(0 <= value < 2**63 for value in found)


@pytest.fixture(scope="module")
def subject():
    return subjects(["shapes?steps=1&guidance=1"])[0]


def test_pictures_are_drawn_once_and_go_on_after_an_interruption(subject, tmp_path):
    said = []
    record = draw(subject, PROMPTS, 2, 0, tmp_path, batch=4, tell=said.append)
    assert record["label"] == "shapes" and record["settings"]["steps"] == 1 and len(record["sha256"]) == 64
    assert len(list(tmp_path.glob("*.png"))) == 6 and len(said) == 2
    first = [pictures.clone() for pictures in by_prompt(tmp_path, 3, 2)]
    (tmp_path / name_of(1, 1)).unlink()
    draw(subject, PROMPTS, 2, 0, tmp_path, batch=4, tell=said.append)
    assert said[-1].endswith("1 of 1 pictures drawn") and len(said) == 3
    for before, after in zip(first, by_prompt(tmp_path, 3, 2), strict=True):
        assert (before - after).abs().max() <= 1 / 255 + 1e-6
    draw(subject, PROMPTS, 2, 0, tmp_path, batch=4, tell=said.append)
    assert len(said) == 3


def test_another_seed_draws_anew(subject, tmp_path):
    draw(subject, PROMPTS[:1], 1, 0, tmp_path, tell=str)
    (before,) = by_prompt(tmp_path, 1, 1)
    draw(subject, PROMPTS[:1], 1, 1, tmp_path, tell=str)
    (after,) = by_prompt(tmp_path, 1, 1)
    assert not torch.equal(before, after)


def test_a_prompt_has_the_same_noise_wherever_it_stands(subject, tmp_path):
    draw(subject, PROMPTS, 1, 0, tmp_path / "all", tell=str)
    draw(subject, PROMPTS[2:], 1, 0, tmp_path / "last", tell=str)
    (alone,) = by_prompt(tmp_path / "last", 1, 1)
    *_, among = by_prompt(tmp_path / "all", 3, 1)
    assert (alone - among).abs().max() <= 1 / 255 + 1e-6


def elsewhere(folder):
    return Subject("elsewhere", str(folder), "pictures")


def test_names_like_ours_are_understood(tmp_path):
    for place in range(3):
        for image in range(3):
            colour(tmp_path / "from" / f"{place:05d}-{image}.png", 10 * place + image)
    record = adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "to")
    assert levels(tmp_path / "to") == [[0, 1], [10, 11], [20, 21]]
    assert record["kind"] == "pictures" and record["settings"] is None


def test_geneval_s_folders_are_understood(tmp_path):
    for place in range(3):
        for image in range(2):
            colour(tmp_path / "from" / f"{place:05d}" / "samples" / f"{image:04d}.png", 10 * place + image)
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "to")
    assert levels(tmp_path / "to") == [[0, 1], [10, 11], [20, 21]]


def test_an_index_says_what_shows_what(tmp_path):
    lines = []
    for value, place in enumerate([2, 0, 1, 0, 2, 1]):
        colour(tmp_path / "from" / f"x{value}.jpg", value)
        lines.append({"image": f"x{value}.jpg", "prompt": PROMPTS[place].text})
    lines.append({"image": "x0.jpg", "prompt": "of another set"})
    (tmp_path / "from" / "images.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = assigned(tmp_path / "from", PROMPTS)
    assert {place: [path.stem for path in paths] for place, paths in found.items()} == {0: ["x1", "x3"], 1: ["x2", "x5"], 2: ["x0", "x4"]}


def test_other_names_are_taken_in_their_order(tmp_path):
    for value in range(6):
        colour(tmp_path / "from" / f"picture {value}.png", value)
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "to")
    assert levels(tmp_path / "to") == [[0, 1], [2, 3], [4, 5]]


def test_what_was_adopted_before_goes(tmp_path):
    for value in range(6):
        colour(tmp_path / "from" / f"{value}.png", value)
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "to")
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 1, tmp_path / "to")
    assert len(list((tmp_path / "to").glob("*.png"))) == 3


def test_too_few_pictures(tmp_path):
    for value in range(3):
        colour(tmp_path / f"{value:05d}-0.png", value)
    with pytest.raises(SubjectError, match=r"has 1 pictures of the prompt 'a red circle', and 2 .* \(3 of 3 prompts"):
        adopt(elsewhere(tmp_path), PROMPTS, 2, tmp_path / "to")


def test_blocks_hold_neighbours_of_one_size(tmp_path):
    for place, side in enumerate([8, 8, 8, 16, 16, 8]):
        Image.new("RGB", (side, 8), (place, 0, 0)).save(tmp_path / name_of(place, 0))
    found = [(list(places), tuple(pictures.shape)) for places, pictures in in_blocks(tmp_path, 6, 1, size=2)]
    assert found == [([0, 1], (2, 3, 8, 8)), ([2], (1, 3, 8, 8)), ([3, 4], (2, 3, 8, 16)), ([5], (1, 3, 8, 8))]


def test_pictures_of_a_prompt_have_one_size(tmp_path):
    for value, side in enumerate([8, 16]):
        Image.new("RGB", (side, 8)).save(tmp_path / f"{value}.png")
    with pytest.raises(SubjectError, match="of 2 sizes"):
        adopt(elsewhere(tmp_path), PROMPTS[:1], 2, tmp_path / "to")


def test_names_that_say_nothing_and_do_not_divide(tmp_path):
    for value in range(4):
        colour(tmp_path / f"x{value}.png", value)
    with pytest.raises(SubjectError, match=r"4 pictures for 3 prompts, .* images\.jsonl"):
        assigned(tmp_path, PROMPTS)


@pytest.mark.parametrize("line", ["not json", '{"image": "a.png"}', '{"image": "gone.png", "prompt": "x"}', "[1]"])
def test_a_line_that_names_nothing(tmp_path, line):
    colour(tmp_path / "a.png", 1)
    (tmp_path / "images.jsonl").write_text(line)
    with pytest.raises(SubjectError, match=r"images\.jsonl:1: wants"):
        assigned(tmp_path, PROMPTS)
