"""Pictures on disk: drawn once, read back, and adopted from elsewhere."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from genrl.comparison.folders import assigned, fewest
from genrl.comparison.pictures import adopt, by_prompt, draw, in_blocks, name_of, seed_of
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
    record = adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "models" / "to")
    assert levels(tmp_path / "models" / "to") == [[0, 1], [10, 11], [20, 21]]
    assert record["kind"] == "pictures" and record["settings"] is None


def test_geneval_s_folders_are_understood(tmp_path):
    for place in range(3):
        for image in range(2):
            colour(tmp_path / "from" / f"{place:05d}" / "samples" / f"{image:04d}.png", 10 * place + image)
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "models" / "to")
    assert levels(tmp_path / "models" / "to") == [[0, 1], [10, 11], [20, 21]]


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
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "models" / "to")
    assert levels(tmp_path / "models" / "to") == [[0, 1], [2, 3], [4, 5]]


def test_what_was_adopted_before_goes(tmp_path):
    for value in range(6):
        colour(tmp_path / "from" / f"{value}.png", value)
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "models" / "to")
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 1, tmp_path / "models" / "to")
    assert len(list((tmp_path / "models" / "to").glob("*.png"))) == 3


def test_too_few_pictures(tmp_path):
    for value in range(3):
        colour(tmp_path / f"{value:05d}-0.png", value)
    with pytest.raises(SubjectError, match=r"has 1 pictures of the prompt 'a red circle', and 2 .* \(3 of 3 prompts"):
        adopt(elsewhere(tmp_path), PROMPTS, 2, tmp_path / "models" / "to")


def test_blocks_hold_neighbours_of_one_size(tmp_path):
    for place, side in enumerate([8, 8, 8, 16, 16, 8]):
        Image.new("RGB", (side, 8), (place, 0, 0)).save(tmp_path / name_of(place, 0))
    found = [(list(places), tuple(pictures.shape)) for places, pictures in in_blocks(tmp_path, 6, 1, size=2)]
    assert found == [([0, 1], (2, 3, 8, 8)), ([2], (1, 3, 8, 8)), ([3, 4], (2, 3, 8, 16)), ([5], (1, 3, 8, 8))]


def test_pictures_of_a_prompt_have_one_size(tmp_path):
    for value, side in enumerate([8, 16]):
        Image.new("RGB", (side, 8)).save(tmp_path / f"{value}.png")
    with pytest.raises(SubjectError, match="of 2 sizes"):
        adopt(elsewhere(tmp_path), PROMPTS[:1], 2, tmp_path / "models" / "to")


def test_names_that_say_nothing_and_do_not_divide(tmp_path):
    for value in range(4):
        colour(tmp_path / f"x{value}.png", value)
    with pytest.raises(SubjectError, match=r"4 pictures for 3 prompts, .* images\.jsonl"):
        assigned(tmp_path, PROMPTS)


def test_the_number_that_is_missing_is_told(tmp_path):
    for value in (1, 2, 4, 5):
        colour(tmp_path / f"{value}.png", value)
    with pytest.raises(SubjectError, match=r"4 pictures for 3 prompts \(there is no 3\.png between 1 and 5\)"):
        assigned(tmp_path, PROMPTS)


def test_pictures_of_several_sizes_are_told(tmp_path):
    for value in range(3):
        colour(tmp_path / "mine" / f"{value}.png", value)
    Image.new("RGB", (16, 8)).save(tmp_path / "mine" / "1.png")
    said = []
    adopt(subjects([str(tmp_path / "mine")])[0], PROMPTS, 1, tmp_path / "out" / "mine", said.append)
    assert said == ["mine: pictures of several sizes (8x8 for 2 prompts, 16x8 for 1 prompts), which scores may depend on"]
    assert fewest(subjects([str(tmp_path / "mine")])[0], PROMPTS) == 1


@pytest.mark.parametrize("line", ["not json", '{"image": "a.png"}', '{"image": "gone.png", "prompt": "x"}', "[1]"])
def test_a_line_that_names_nothing(tmp_path, line):
    colour(tmp_path / "a.png", 1)
    (tmp_path / "images.jsonl").write_text(line)
    with pytest.raises(SubjectError, match=r"images\.jsonl:1: wants"):
        assigned(tmp_path, PROMPTS)


# -- what is there from before


def drawn(folder, seed=0, images=2):
    draw(subjects(["shapes?steps=1&guidance=1"])[0], PROMPTS, images, seed, folder, tell=str)
    return torch.cat(list(by_prompt(folder, 3, images)))


def test_pictures_of_a_start_that_was_broken_off_are_not_taken_for_those_before(tmp_path, monkeypatch):
    first, save = drawn(tmp_path), Image.Image.save

    def broken(picture, path, **options):
        if path.name.startswith(".00001"):
            raise KeyboardInterrupt
        save(picture, path, **options)

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path, seed=1)
    monkeypatch.undo()
    assert (tmp_path / name_of(0, 1)).is_file() and not (tmp_path / name_of(1, 0)).is_file()
    assert torch.equal(drawn(tmp_path), first)


def test_pictures_that_were_adopted_are_not_taken_for_drawn(tmp_path):
    first = drawn(tmp_path / "models" / "to")
    for place in range(3):
        for image in range(2):
            colour(tmp_path / "from" / name_of(place, image), place)
    adopt(elsewhere(tmp_path / "from"), PROMPTS, 2, tmp_path / "models" / "to")
    assert torch.equal(drawn(tmp_path / "models" / "to"), first)


@pytest.mark.parametrize("record", ['{"sha256": "', "[1]", "{}"])
def test_a_record_that_cannot_be_read_is_none(tmp_path, record):
    first = drawn(tmp_path)
    (tmp_path / "drawn.json").write_text(record)
    assert torch.equal(drawn(tmp_path), first)


def test_an_evaluation_does_not_eat_its_own_pictures(tmp_path):
    own = tmp_path / "models" / "mine"
    for place in range(3):
        colour(own / name_of(place, 0), place)
    for source in (own, tmp_path):
        with pytest.raises(SubjectError, match=r"pictures of this evaluation.* --out"):
            adopt(elsewhere(source), PROMPTS, 1, own)
    assert levels(own, images=1) == [[0], [1], [2]]


# -- pictures from anywhere


def test_numbers_in_names_are_ordered_as_numbers(tmp_path):
    for value in range(12):
        colour(tmp_path / "plain" / f"{value}.png", value)
        colour(tmp_path / "ours" / f"0-{value}.png", value)
    prompts = [Prompt(f"prompt {place}") for place in range(12)]
    assert [int(paths[0].stem) for paths in assigned(tmp_path / "plain", prompts).values()] == list(range(12))
    assert [path.stem for path in assigned(tmp_path / "ours", prompts)[0]] == [f"0-{image}" for image in range(12)]


def test_hidden_files_and_folders_are_no_pictures(tmp_path):
    for value, name in enumerate(["0.png", "1.png", "2.png", ".3.png", ".thumbnails/4.png"]):
        colour(tmp_path / name, value)
    (tmp_path / "5.png").mkdir()
    assert [path.name for paths in assigned(tmp_path, PROMPTS).values() for path in paths] == ["0.png", "1.png", "2.png"]


def test_names_of_prompts_that_are_not_there(tmp_path):
    """Of the list that they were drawn from only some are compared: their places are not those of the others."""
    for place in range(6):
        colour(tmp_path / name_of(place, 0), place)
    with pytest.raises(SubjectError, match="pictures of prompt 3, and the list has 3, counted from 0"):
        assigned(tmp_path, PROMPTS)


def test_two_pictures_of_one_name(tmp_path):
    for name in ("00000-0.png", "0-0.jpg", "1-0.png", "2-0.png"):
        colour(tmp_path / name, 1)
    with pytest.raises(SubjectError, match="are both called image 0 of prompt 0"):
        assigned(tmp_path, PROMPTS)


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "/etc/secret.png"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    colour(tmp_path / "secret.png", 1)
    (tmp_path / "from" / "sub").mkdir(parents=True)
    image = name if not name.startswith("/") else str(tmp_path / "secret.png")
    (tmp_path / "from" / "images.jsonl").write_text(json.dumps({"image": image, "prompt": PROMPTS[0].text}))
    with pytest.raises(SubjectError, match="a file in this folder"):
        assigned(tmp_path / "from", PROMPTS[:1])


def test_an_index_as_other_programs_write_it(tmp_path):
    """With a byte order mark, and letters that are no end of a line in JSON."""
    prompts = [Prompt("a red\u2028circle"), Prompt("two\x85squares")]
    colour(tmp_path / "a.png", 1)
    lines = [json.dumps({"image": "a.png", "prompt": f" {prompt.text} "}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "images.jsonl").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert list(assigned(tmp_path, prompts)) == [0, 1]


@pytest.mark.parametrize(
    "spoil", [lambda data: b"", lambda data: data[:45], lambda data: b"GIF89a", lambda data: data.replace(b"IDAT", b"ID\0T")]
)
def test_a_picture_that_cannot_be_read_is_named(tmp_path, spoil):
    for place in range(3):
        colour(tmp_path / "from" / f"{place}.png", 1)
    bad = tmp_path / "from" / "1.png"
    bad.write_bytes(spoil(bad.read_bytes()))
    with pytest.raises(SubjectError, match=r"1\.png' cannot be read as a picture"):
        adopt(elsewhere(tmp_path / "from"), PROMPTS, 1, tmp_path / "models" / "to")


def test_pictures_of_every_mode(tmp_path):
    levels_of_16_bits = np.full((8, 8), 100 * 256 + 7, np.uint16)
    for place, (picture, name) in enumerate(
        [
            (Image.fromarray(levels_of_16_bits), "png"),
            (Image.new("L", (8, 8), 100), "png"),
            (Image.new("RGBA", (8, 8), (100, 0, 0, 255)), "webp"),
            (Image.new("RGB", (8, 8), (100, 0, 0)).convert("P"), "png"),
            (Image.new("RGB", (8, 8), (100, 0, 0)).convert("CMYK"), "jpg"),
        ]
    ):
        picture.save(tmp_path / f"{place}.{name}")
    adopt(elsewhere(tmp_path), [Prompt(str(place)) for place in range(5)], 1, tmp_path / "models" / "to")
    assert all(abs(level - 100) <= 4 for (level,) in levels(tmp_path / "models" / "to", 5, 1))
