"""A result that is repeated may come from anybody, and may have been edited."""

import copy
import json
from dataclasses import asdict

import pytest

from genrl.cli import main
from genrl.comparison.evaluate import evaluate
from genrl.comparison.protocol import Protocol, like, repeated
from genrl.comparison.subjects import Subject, SubjectError
from genrl.prompt_sets import prompt_set

MINI = prompt_set("mini", limit=3)
RESULT = {
    "genrl_evaluation": 1,
    "protocol": {
        "prompt_set": {"name": "mini", "sha256": MINI.sha256, "licence": MINI.licence, "source": MINI.source},
        "prompts": [{**prompt.metadata, "prompt": prompt.text, "category": prompt.category} for prompt in MINI.prompts],
        "images_per_prompt": 2,
        "seed": 3,
        "rewards": {"size": {"name": "jpeg_size", "options": {}, "licence": "none needed", "weights": []}},
        "extractors": ["shapes"],
        "reference": {"source": "base", "images": 6},
    },
    "subjects": [asdict(Subject("one", "shapes", "pipeline"))],
    "comparison": [{"metric": "size", "model": "one", "prompts": 3, "mean": 0.5}],
}


def edited(path, *keys, value=None):
    """The result in a file, with one entry changed, or removed."""
    result = copy.deepcopy(RESULT)
    inner = result
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(result))
    return path


def test_a_result_is_its_protocol(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    subjects, protocol, earlier = like(tmp_path)
    assert subjects == [Subject("one", "shapes", "pipeline")] and earlier == json.loads(json.dumps(RESULT))
    assert (protocol.images, protocol.seed, protocol.features, protocol.reference) == (2, 3, ["shapes"], "base")
    assert [prompt.text for prompt in protocol.prompts.prompts] == [prompt.text for prompt in MINI.prompts]


@pytest.mark.parametrize("key", ["prompt_set", "prompts", "images_per_prompt", "seed", "rewards", "extractors", "reference"])
def test_a_protocol_that_lacks_something(tmp_path, key):
    with pytest.raises(ValueError, match=f"edited or is incomplete: no '{key}'"):
        like(edited(tmp_path / "a.json", "protocol", key))


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("protocol",), 5, "cannot be repeated"),
        (("protocol", "prompts"), [5], "cannot be repeated"),
        (("protocol", "prompts", 0, "prompt"), "another one", "the prompts have the SHA-256"),
        (("protocol", "images_per_prompt"), "2", "must be whole numbers; got '2' and 3"),
        (("protocol", "seed"), 0.5, "must be whole numbers"),
        (("protocol", "rewards"), ["x"], "cannot be repeated"),
        (("subjects",), [5], "cannot be repeated"),
        (("subjects", 0, "kind"), "magic", "no subject"),
        (("subjects", 0, "source"), 5, "no subject"),
        (("subjects", 0, "settings", "steps"), -1, "steps must be a whole number above 0"),
        (("subjects", 0, "surplus"), 1, "cannot be repeated"),
        (("comparison", 0, "mean"), "high", "cannot be repeated"),
    ],
)
def test_a_protocol_that_was_edited(tmp_path, keys, value, words):
    with pytest.raises(ValueError, match=words):
        like(edited(tmp_path / "a.json", *keys, value=value))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, json.dumps(RESULT).encode()[:300]])
def test_what_cannot_be_read(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read '.*a\.json' as a result of genrl evaluate"):
        like(tmp_path / "a.json")


@pytest.mark.parametrize("label", ["../../elsewhere", "..", ".", "a/b", ""])
def test_labels_do_not_lead_out_of_the_folder(tmp_path, label):
    subjects, protocol, _ = like(edited(tmp_path / "a.json", "subjects", 0, "label", value=label))
    with pytest.raises(SubjectError, match="a label names files"):
        evaluate(subjects, protocol, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def test_labels_are_told_apart(tmp_path):
    with pytest.raises(SubjectError, match="two subjects are called alike: one, one"):
        evaluate([Subject("one", "shapes", "pipeline")] * 2, Protocol(MINI), tmp_path)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *map(str, arguments)])
    assert stopped.value.code == 1
    return capsys.readouterr().err


def test_code_that_a_result_names_is_not_run_unasked(tmp_path, capsys):
    term = {"name": "subprocess:Popen", "options": {"args": ["touch", str(tmp_path / "run")]}}
    path = edited(tmp_path / "a.json", "protocol", "rewards", value={"x": term})
    assert "name all rewards, --rewards x=subprocess:Popen" in refused(capsys, "--like", path, "--out", tmp_path / "out")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "2"], "are of models that are named"),
        (["--base", "shapes"], "are of models that are named"),
        (["--limit", "-1"], "limit of prompts must be 0"),
        (["--prompts", "nowhere"], "no prompt file 'nowhere'"),
        (["--prompt-file", "nowhere"], "only a public set is read from a file"),
        (["--reward-options", '{"size": {}}'], "goes with --rewards"),
    ],
)
def test_what_would_change_nothing_is_refused(tmp_path, capsys, arguments, words):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert words in refused(capsys, "--like", tmp_path, "--out", tmp_path / "out", *arguments)


def test_how_far_two_results_are_apart():
    now = {"comparison": [{"metric": "size", "model": "one", "mean": 0.75}, {"metric": "size", "model": "one prompt"}]}
    assert repeated(RESULT, RESULT) == ["All 1 means are those of the earlier result, to the last digit."]
    assert "farthest from the earlier result is size of one: 0.5 then, 0.75 now" in repeated(RESULT, now)[0]
    assert "Nothing to compare" in repeated(RESULT, {"comparison": []})[0]
