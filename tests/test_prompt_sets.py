"""Our own prompt sets say what their rewards read; a set's digest, its limit, and what leaks."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from genrl.data import BUILT_IN, PromptError, load_prompts
from genrl.prompt_sets import OWN, all_sets, leaks, normalised, part, prompt_set, spread
from genrl.prompts import build
from genrl.prompts.public import PUBLIC, digest
from genrl.rewards.geneval import COCO, Detection, check, evaluate
from genrl.rewards.ocr import QUOTED, plain, target
from genrl.types import Prompt

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"left of": (-200, 0), "right of": (200, 0), "above": (0, -200), "below": (0, 200)}


def some(*texts: str) -> list[Prompt]:
    return [Prompt(text) for text in texts]


# --- our own ---


def test_generated_sets_are_what_the_generator_writes(tmp_path):
    build.main(tmp_path)
    for name in ("compose", "text"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (build.FOLDER / f"{name}.jsonl").read_bytes(), "python -m genrl.prompts.build"
    assert build.compose(seed=1) != build.compose(seed=0)


def test_mini_has_eight_of_each_of_eight_kinds():
    prompts = load_prompts("mini")
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(
        ("scenes", "animals", "objects", "styles", "composition", "counting", "text", "light"), 8
    )
    assert len({normalised(prompt.text) for prompt in prompts}) == 64
    for prompt in prompts:
        assert prompt.text == prompt.text.strip() and prompt.text[-1] != "." and len(prompt.text.split()) <= 20
        assert bool(QUOTED.search(prompt.text)) == (prompt.category == "text"), prompt.text


def scene(include: list[dict], extra: int = 0) -> dict[str, list[Detection]]:
    """A picture in which each entry has its objects, side by side unless a position is asked for; ``extra`` more of the first."""
    found: dict[str, list[Detection]] = {}
    for index, entry in enumerate(include):
        relation, _ = entry.get("position", ("below", 0))
        x, y = SIDES[relation] if index else (0, 0)
        for number in range(entry["count"] + (extra if index == 0 else 0)):
            found.setdefault(entry["class"], []).append(Detection(entry["class"], 1.0, (x + 30 * number, y, x + 30 * number + 20, y + 20)))
    return found


def test_compose_is_scored_by_geneval_as_its_words_say():
    prompts = load_prompts("compose")
    tags = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(tags, 40)
    assert len({normalised(prompt.text) for prompt in prompts}) == 240
    for prompt in prompts:
        wanted = dict(prompt.metadata)
        include = wanted["include"]
        check(wanted, COCO)
        assert wanted["tag"] == prompt.category
        colours = {entry["class"]: entry.get("color", "") for entry in include}

        def named(objects, colours=colours):
            return [colours[thing.name] for thing in objects]

        assert evaluate(scene(include), wanted, named) == 1, prompt
        assert evaluate({}, wanted, named) == 0
        assert evaluate(scene(include, extra=1), wanted, named) == (prompt.category != "counting"), "one too many is seen where it counts"
        words = prompt.text.split(" of ", 1)[1]
        told = [build.singular(e["class"], colours[e["class"]]) for e in include]
        if prompt.category == "counting":
            told = [f"{build.NUMBERS[include[0]['count']]} {build.plural(include[0]['class'])}"]
        link = " and "
        if prompt.category == "position":
            relation = include[1]["position"][0]
            told, link = told[::-1], f" {build.RELATIONS[relation]} "
            turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
            other = [include[0], {**include[1], "position": [turned, 0]}]
            assert evaluate(scene(other), wanted, named) == 0, "the other side is wrong"
        assert words == link.join(told)


def test_text_asks_for_what_the_ocr_reward_reads():
    prompts = load_prompts("text")
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(build.WORDS, 16)
    assert set(Counter(prompt.metadata["surface"] for prompt in prompts).values()) == {4} and len({p.text for p in prompts}) == 64
    for prompt in prompts:
        assert target(prompt.text, prompt.metadata) == target(prompt.text, {}) == prompt.metadata["text"] != ""
    length = {name: [len(plain(p.metadata["text"])) for p in prompts if p.category == name] for name in build.WORDS}
    means = [sum(n) / len(n) for n in length.values()]
    assert means == sorted(means) and means[-1] > 4 * means[0]


def test_our_own_sets_are_had_by_name():
    for name in OWN:
        found = prompt_set(name)
        assert found.name == name and found.licence == "CC0-1.0" and found.prompts == load_prompts(name)
    assert load_prompts("shapes") == load_prompts("shapes/held_out")
    assert prompt_set("shapes").sha256 == prompt_set("shapes/held_out").sha256 != prompt_set("shapes/train").sha256
    assert set(OWN) < set(BUILT_IN)


def test_every_set_is_listed():
    listed = {entry.name: entry for entry in all_sets()}
    assert list(listed) == [*OWN, *PUBLIC]
    assert (listed["mini"].count, listed["mini"].categories) == (64, 8)
    assert "mini              64 prompts  CC0-1.0; in the package" in map(str, all_sets())
    assert all(entry.licence and entry.source and entry.count for entry in listed.values())
    assert all(re.fullmatch("[0-9a-f]{64}|", public.sha256) for public in PUBLIC.values())


def test_the_documented_table_is_that_of_the_package():
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (\d+) \|", (ROOT / "docs/prompts.md").read_text("utf-8"), re.M)
    assert rows == [(entry.name, str(entry.count), str(entry.categories)) for entry in all_sets()]


# --- collections ---


def test_the_digest_is_of_the_prompts_not_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("a red cat\n\ntwo dogs, one hat\n", newline="\r\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a red cat", "category": "x"}\n{"prompt": "two dogs, one hat"}\n')
    (tmp_path / "c.csv").write_text('Category,Prompts\nx,a red cat\n,"two dogs, one hat"\n')
    (tmp_path / "d.tsv").write_text("\ufeffPrompt\tCategory\na red cat\tx\ntwo dogs, one hat\t\n", encoding="utf-8")
    found = [prompt_set(path) for path in sorted(tmp_path.iterdir())]
    assert [[prompt.text for prompt in one.prompts] for one in found] == [["a red cat", "two dogs, one hat"]] * 4
    assert [one.prompts[0].category for one in found] == ["", "x", "x", "x"]
    assert len({one.sha256 for one in found}) == 1 and [one.name for one in found] == ["a", "b", "c", "d"]
    assert digest(some("two dogs, one hat", "a red cat")) != found[0].sha256
    assert digest(some("cat")) == "175cc6f362b2f75acd08a373e000144fdb8d14a833d4b70fd743f16a7039103f", "printf 'cat\\n' | sha256sum"


def test_a_limit_keeps_the_categories():
    assert [prompt.category for prompt in prompt_set("mini", limit=8).prompts] == list(
        dict.fromkeys(prompt.category for prompt in load_prompts("mini"))
    )
    assert Counter(prompt.category for prompt in prompt_set("compose", limit=60).prompts) == dict.fromkeys(
        {prompt.category for prompt in load_prompts("compose")}, 10
    )
    texts = some(*"abcdefgh")
    assert [prompt.text for prompt in spread(texts, 3)] == ["a", "c", "f"]
    assert spread(texts, 0) == spread(texts, 8) == spread(texts, 99) == texts
    assert prompt_set("mini", limit=8).sha256 != prompt_set("mini").sha256
    with pytest.raises(PromptError, match=r"0 \(all of them\) or more, got -1"):
        prompt_set("mini", limit=-1)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("p.csv", "words\na\n", "no column of prompts; call it 'prompt'. Its columns: words"),
        ("p.tsv", "prompt\tx\n\t1\n", "p.tsv:2: no prompt in this row"),
        ("p.tsv", "prompt\n", "no prompts in it"),
        ("p.csv", "", "Its columns: none"),
        ("p.jsonl", "{}\n", 'non-empty "prompt"'),
        ("p.pkl", "x", "prompt files end in"),
    ],
)
def test_a_file_that_is_no_prompt_set_says_why(tmp_path, name, content, why):
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=why):
        prompt_set(tmp_path / name)


def test_an_unknown_name_tells_near_ones(tmp_path):
    with pytest.raises(PromptError, match=r"no prompt file 'GenEvil'.*did you mean 'geneval'"):
        prompt_set("GenEvil")
    with pytest.raises(PromptError, match="known sets: mini, compose"):
        prompt_set("qqqq")
    with pytest.raises(PromptError, match="only a public set is read from a file beside its name"):
        prompt_set("mini", tmp_path)


# --- leaks ---


def test_a_prompt_leaks_whatever_its_spelling():
    train = some("A  Red Cat!", "the dog\u2019s house", "hot-air balloons", "café", "\uff21\uff22\uff23", "...")
    judged = some(
        "a red cat", "a red cats", "The dogs house.", "hot air\u00a0balloons", "cafe\u0301", "abc", "a red cat", "A red cat.", "!!", "..."
    )
    assert leaks(train, judged) == [
        "a red cat",
        "The dogs house.",
        "hot air\u00a0balloons",
        "cafe\u0301",
        "abc",
        "A red cat.",
        "...",
    ]
    assert leaks([], judged) == leaks(train, []) == []
    assert leaks(load_prompts("shapes/train"), load_prompts("shapes")) == []


def test_the_hub_library_is_loaded_only_when_asked():
    code = "import sys, genrl.prompt_sets as p; p.prompt_set('mini'); p.all_sets(); print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_files_as_other_programs_write_them(tmp_path):
    """A byte order mark is no letter of the first prompt, and what ends a line for Python ends none of JSON."""
    texts = ["caf\u00e9", "a\u2028b"]
    contents = {
        "a.txt": "\ufeffcaf\u00e9\r\n",
        "b.jsonl": "\ufeff" + "\r\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in texts),
        "c.csv": "\ufeffprompt\r\ncaf\u00e9\r\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
        for read in (lambda path: prompt_set(path).prompts, load_prompts):
            assert [prompt.text for prompt in read(tmp_path / name)] == texts[: 2 if name == "b.jsonl" else 1], name


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.tsv"])
def test_another_encoding_is_told(tmp_path, name):
    (tmp_path / name).write_bytes("prompt\ncaf\u00e9\n".encode("latin-1"))
    for read in (prompt_set, load_prompts) if name != "p.tsv" else (prompt_set,):
        with pytest.raises(PromptError, match=rf"{name}: .* UTF-8"):
            read(tmp_path / name)


def test_a_quote_that_is_never_closed(tmp_path):
    (tmp_path / "p.csv").write_text('prompt\n"a cat\n' + "a dog\n" * 30_000)
    for read in (prompt_set, load_prompts):
        with pytest.raises(PromptError, match=r"p\.csv: no table"):
            read(tmp_path / "p.csv")


def test_an_index_of_pictures_names_each_prompt_once(tmp_path):
    lines = [json.dumps({"image": f"{number}.png", "prompt": text}) for number, text in enumerate(["b", "a", "b", "c", "a"])]
    (tmp_path / "images.jsonl").write_text("\n".join(lines))
    assert [prompt.text for prompt in prompt_set(tmp_path / "images.jsonl").prompts] == ["b", "a", "c"]
    assert [prompt.text for prompt in prompt_set(tmp_path / "images.jsonl", limit=2).prompts] == ["b", "a"]


def test_a_part_of_a_collection_has_a_digest_of_its_own():
    whole = prompt_set("mini")
    assert part(whole, 8) == prompt_set("mini", limit=8) and part(whole, 0) == whole
