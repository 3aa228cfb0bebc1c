"""Public prompt sets: read from files of their format (made up here, never the real ones), checked, and asked for at the hub."""

import json
import re
from dataclasses import replace

import huggingface_hub
import pytest

from genrl.data import PromptError
from genrl.prompt_sets import prompt_set
from genrl.prompts.public import PUBLIC, dmd2_captions

GENEVAL = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "some red cup"}
POINTS = {"Primary Categories": "Toys", "Testpoints": ["Style"]}
COCO_FILE = {
    "images": [{"id": 30 + k, "file_name": f"COCO_val2014_{k}.jpg"} for k in range(6)],
    "annotations": [{"id": k, "image_id": 30 + (k * 5) % 6, "caption": f"caption {k}"} for k in range(14)],
}
FILES = {
    "partiprompts": {"p.tsv": 'Prompt\tCategory\tChallenge\tNote\na "big" cup\tTools\tBasic\tn\nmoss\tPlants\tBasic\t\n'},
    "geneval": {"e.jsonl": json.dumps(GENEVAL) + "\n\n"},
    "drawbench": {"d.csv": 'Prompts,Category\n"a cup, red.",Colors\nA moss.,Someone et al. \n'},
    "hpdv2": {name: json.dumps([f"{name} one", f"{name} two "]) for name in PUBLIC["hpdv2"].files},
    "t2i-compbench": {name: f"{name} one\r\n{name} two\r\n" for name in PUBLIC["t2i-compbench"].files},
    "dpg-bench": {"12.txt": "a long one\n", "whoops3.txt": "another", "COCOval2014_1.txt": "third"},
    "unigenbench": {"test_en.csv": 'index,prompt_en,sub_dims_en\n0,a toy,"' + json.dumps(POINTS).replace('"', '""') + '"\n'},
    "coco-10k": {"captions_val2014.json": json.dumps(COCO_FILE)},
}
READ = {  # (text, category) of the first and the last prompt, and how many there are
    "partiprompts": (('a "big" cup', "Tools"), ("moss", "Plants"), 2),
    "geneval": (("some red cup", "colors"), ("some red cup", "colors"), 1),
    "drawbench": (("a cup, red.", "Colors"), ("A moss.", "Someone et al."), 2),
    "hpdv2": (("anime.json one", "anime"), ("photo.json two", "photo"), 8),
    "t2i-compbench": (("color_val.txt one", "color"), ("complex_val.txt two", "complex"), 16),
    "dpg-bench": (("a long one", "numbered"), ("another", "whoops"), 3),
    "unigenbench": (("a toy", "Toys"), ("a toy", "Toys"), 1),
    "coco-10k": (("caption 0", ""), ("caption 8", ""), 6),
}


@pytest.fixture
def known(monkeypatch):
    """Make a made-up set of so many prompts the published one."""

    def set_known(name: str, count: int, sha256: str = ""):
        monkeypatch.setitem(PUBLIC, name, replace(PUBLIC[name], count=count, sha256=sha256))  # type: ignore[arg-type]

    return set_known


def write(folder, name: str):
    folder.mkdir(exist_ok=True)
    for file, content in FILES[name].items():
        (folder / file).write_text(content, encoding="utf-8", newline="")
    return folder / next(iter(FILES[name])) if PUBLIC[name].one_file else folder


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_set_is_read_from_its_file(tmp_path, known, name):
    first, last, count = READ[name]
    path = write(tmp_path / "set", name)
    known(name, count)
    found = prompt_set(name, path)
    assert len(found.prompts) == count and found.licence == PUBLIC[name].licence and str(path) in found.source
    assert (found.prompts[0].text, found.prompts[0].category) == first
    assert (found.prompts[-1].text, found.prompts[-1].category) == last
    known(name, count, found.sha256)
    assert prompt_set(name, path, limit=1).prompts == found.prompts[:1], "the whole set is checked, then cut"
    known(name, count, "0" * 64)
    with pytest.raises(PromptError, match=f"SHA-256 {found.sha256}, those published {'0' * 64}; to judge on it all the same"):
        prompt_set(name, path)
    known(name, count + 1)
    with pytest.raises(PromptError, match=f"holds {count} prompts, published were {count + 1}; to judge on it all the same"):
        prompt_set(name, path)


def test_what_a_public_file_says_beside_the_prompt_is_kept(tmp_path, known):
    def first(name):
        known(name, READ[name][2])
        return prompt_set(name, write(tmp_path / name, name)).prompts[0].metadata

    assert first("geneval") == {"tag": "colors", "include": GENEVAL["include"]}
    assert first("partiprompts")["Challenge"] == "Basic"
    assert first("unigenbench")["sub_dims_en"] == POINTS
    assert first("dpg-bench")["id"] == "12"
    assert first("coco-10k")["file_name"] == "COCO_val2014_0.jpg"


def test_ten_thousand_captions_are_drawn_as_dmd2_does():
    """The expected list is what its script makes of the same annotations, run with pandas 3.1."""
    names_and_captions = [(0, 0), (5, 1), (2, 4), (1, 11)]
    assert dmd2_captions(COCO_FILE, 4) == [(f"COCO_val2014_{name}.jpg", f"caption {caption}") for name, caption in names_and_captions]


def test_captions_are_also_read_from_a_list(tmp_path, known):
    known("coco-10k", 2)
    (tmp_path / "c.txt").write_text("one thing\nanother\n")
    (tmp_path / "c.csv").write_text(",file_name,caption\n4,x.jpg,one thing\n2,y.jpg,another\n")
    assert prompt_set("coco-10k", tmp_path / "c.txt").sha256 == prompt_set("coco-10k", tmp_path / "c.csv").sha256


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("geneval", '{"prompt": "a", "tag": "x"}', 'wants an object with "prompt", "tag" and "include"'),
        ("geneval", "{", "f:1: not JSON"),
        ("geneval", '{"prompt": 5, "tag": "x", "include": []}', "f is not made as it was published"),
        ("unigenbench", "prompt_en,sub_dims_en\na,5\n", "f is not made as it was published"),
        ("unigenbench", "prompt_en\na\n", "prompt 0: not JSON"),
        ("coco-10k", "x", "pickled lists are not opened"),
        ("partiprompts", "a\tb\n", "no column of prompts"),
    ],
)
def test_a_public_file_of_another_form_says_why(tmp_path, name, content, why):
    (tmp_path / "f").write_text(content)
    with pytest.raises(PromptError, match=re.escape(why)):
        prompt_set(name, tmp_path / "f")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", 'an object with "images" and "annotations"'),
        (json.dumps(COCO_FILE).replace("val2014_3", "train2014_3"), "holds COCO_train2014_3.jpg, so it is not COCO 2014's validation"),
    ],
)
def test_other_annotations_are_not_taken_for_cocos_validation_split(tmp_path, content, why):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(PromptError, match=why):
        prompt_set("coco-10k", tmp_path / "c.json")


def test_files_that_are_missing_are_named(tmp_path, known):
    with pytest.raises(PromptError, match=r"is not there; download evaluation_metadata\.jsonl from https://github\.com/djghosh13"):
        prompt_set("geneval", tmp_path / "nowhere.jsonl")
    folder = write(tmp_path / "t", "t2i-compbench")
    (folder / "shape_val.txt").unlink()
    with pytest.raises(PromptError, match=r"holds no shape_val\.txt; download the folder with color_val\.txt"):
        prompt_set("t2i-compbench", folder)
    with pytest.raises(PromptError, match="is a file, and the set is a folder"):
        prompt_set("t2i-compbench", folder / "color_val.txt")
    known("dpg-bench", 3)
    dpg = write(tmp_path / "dpg", "dpg-bench")
    (dpg / "12.txt").write_text(" \n")
    with pytest.raises(PromptError, match="empty prompts, the first of them number 0"):
        prompt_set("dpg-bench", dpg)
    (tmp_path / "h").mkdir()
    (tmp_path / "h/anime.json").write_text('{"a": 1}')
    for name in PUBLIC["hpdv2"].files[1:]:
        (tmp_path / "h" / name).write_text("[]")
    with pytest.raises(PromptError, match=r"anime\.json: wants a list of prompts"):
        prompt_set("hpdv2", tmp_path / "h")


def test_the_hub_is_asked_for_the_declared_files(tmp_path, known, monkeypatch):
    asked = []

    def fake(repo, file, repo_type):
        asked.append((repo, file, repo_type))
        return str(tmp_path / "hpdv2" / file.split("/")[-1])

    write(tmp_path / "hpdv2", "hpdv2")
    known("hpdv2", 8)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    found = prompt_set("hpdv2")
    styles = ("anime", "concept-art", "paintings", "photo")
    assert asked == [("zhwang/HPDv2", f"benchmark/{style}.json", "dataset") for style in styles]
    assert found.source.startswith("hub dataset zhwang/HPDv2") and found.sha256 == prompt_set("hpdv2", tmp_path / "hpdv2").sha256


def test_a_download_that_fails_says_what_to_do_in_one_line(monkeypatch):
    def fake(*_, **__):
        raise ConnectionError("no route to host. Try again.\nAnd much more.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    with pytest.raises(PromptError) as caught:
        prompt_set("partiprompts")
    assert str(caught.value) == (
        "partiprompts could not be had from the hub dataset nateraw/parti-prompts (ConnectionError: no route to host); download "
        "PartiPrompts.tsv from https://github.com/google-research/parti/blob/main/PartiPrompts.tsv and give it: "
        "--prompts partiprompts --prompt-file PATH"
    )
    with pytest.raises(PromptError, match="the hub has no copy of dpg-bench that is read here; download the folder"):
        prompt_set("dpg-bench")
