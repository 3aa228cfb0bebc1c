"""What a user types, and what is compared then."""

from pathlib import Path

import pytest
from PIL import Image

from genrl.comparison.subjects import SubjectError, subjects
from genrl.models.drawing import LORA_WEIGHTS

RUN = """
model: {source: shapes, t5: false, max_sequence_length: 1}
sampling: {steps: 10, guidance: 1.5}
data: {train: shapes/train}
"""
DISTILLED = """
model: {source: shapes, t5: false, max_sequence_length: 1}
sampling: {steps: 4}
teacher: {source: '', steps: 28, guidance: 2.0}
"""


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "mine", RUN)


def made_run(folder: Path, config: str) -> Path:
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "model_index.json").write_text("{}")
    (folder / "config.yaml").write_text(config)
    return folder


def test_an_embedded_model_is_called_as_it_was_trained():
    (found,) = subjects(["shapes"])
    assert (found.label, found.source, found.kind) == ("shapes", "shapes", "pipeline")
    assert found.settings.arguments() == {"max_sequence_length": 1} and "text_encoder_3" in found.settings.absent


def test_a_run_brings_its_settings_and_its_base(run):
    base, found = subjects([str(run)])
    assert (found.label, found.kind, found.source, found.train) == ("mine", "run", str(run / "pipeline"), "shapes/train")
    assert found.settings.arguments() == {"num_inference_steps": 10, "guidance_scale": 1.5, "max_sequence_length": 1}
    assert (base.label, base.settings) == ("shapes", found.settings)


def test_the_pipeline_folder_of_a_run_is_the_run(run):
    assert subjects([str(run / "pipeline")])[1] == subjects([str(run)])[1]


def test_a_distillation_is_compared_with_its_teacher_at_full_length(tmp_path):
    base, found = subjects([str(made_run(tmp_path / "student", DISTILLED))])
    assert (found.settings.steps, found.settings.guidance) == (4, 1.0)
    assert (base.label, base.settings.steps, base.settings.guidance) == ("shapes", 28, 2.0)


def test_the_base_comes_first_and_is_not_doubled(run):
    assert [found.label for found in subjects([str(run), "shapes"])] == ["shapes", "mine"]
    assert [found.label for found in subjects(["shapes_sdxl", "shapes"], base="shapes")] == ["shapes", "shapes_sdxl"]
    assert [found.label for found in subjects(["shapes_sdxl"], base="first=shapes")] == ["first", "shapes_sdxl"]


def test_what_stands_behind_the_question_mark_wins(run):
    (base, found) = subjects([f"x={run}?steps=3&guidance=7&max_sequence_length=5"])
    assert found.label == "x" and found.settings.arguments() == {"num_inference_steps": 3, "guidance_scale": 7, "max_sequence_length": 5}
    assert base.settings.steps == 10


def test_the_command_s_settings_are_for_those_that_name_none(run):
    first, second, third = subjects([str(run), "shapes_sdxl?guidance=2"], steps=[6], guidance=3.0)
    assert (first.label, first.settings.steps, first.settings.guidance) == ("shapes", 6, 3.0)
    assert (second.label, second.settings.steps, second.settings.guidance) == ("mine", 6, 3.0)
    assert (third.settings.steps, third.settings.guidance) == (6, 2)


def test_several_steps_make_several_subjects():
    found = subjects(["shapes", "fixed=shapes?steps=28"], steps=[2, 4])
    assert [(one.label, one.settings.steps) for one in found] == [("shapes@2", 2), ("shapes@4", 4), ("fixed", 28)]


def test_adapters_go_on_the_base(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / LORA_WEIGHTS).write_text("")
    base, found = subjects([str(tmp_path / "mine")], base="shapes")
    assert (found.kind, found.source, found.lora) == ("lora", "shapes", str(tmp_path / "mine"))
    assert found.settings == base.settings
    assert subjects(["lora:owner/style"], base="shapes")[1].lora == "owner/style"
    with pytest.raises(SubjectError, match="--base"):
        subjects([str(tmp_path / "mine")])


def test_a_folder_of_pictures(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (found,) = subjects([f"elsewhere={tmp_path}"])
    assert (found.label, found.kind) == ("elsewhere", "pictures")


def test_a_hub_id_is_left_to_the_hub():
    (found,) = subjects(["owner/name"])
    assert (found.label, found.source, found.kind) == ("name", "owner/name", "pipeline")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["nowhere"], "no model or picture folder 'nowhere'"),
        (["./nowhere"], "no model or picture folder"),
        (["shapes", "shapes"], "two subjects are called shapes"),
        (["a b=shapes"], "a label names files"),
        (["../x=shapes"], "a label names files"),
        (["shapes?steps"], "name=value"),
    ],
)
def test_what_cannot_be_compared(texts, words):
    with pytest.raises(SubjectError, match=words):
        subjects(texts)


def test_an_empty_folder_and_an_unfinished_run(tmp_path):
    with pytest.raises(SubjectError, match="holds neither"):
        subjects([str(tmp_path)])
    (tmp_path / "config.yaml").write_text(RUN)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SubjectError, match="no pipeline yet"):
        subjects([str(tmp_path)])


def test_a_run_may_be_called_what_its_base_is_called(tmp_path):
    path = str(made_run(tmp_path / "shapes", RUN))
    with pytest.raises(SubjectError, match="two subjects are called shapes"):
        subjects([path])
    assert [(found.label, found.kind) for found in subjects([f"mine={path}"])] == [("shapes", "pipeline"), ("mine", "run")]


def test_a_folder_is_called_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "pictures" / "inner").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    monkeypatch.chdir(tmp_path / "pictures" / "inner")
    assert subjects([".."])[0].label == "pictures"
    with pytest.raises(SubjectError, match="not dots alone"):
        subjects(["..=.."])


@pytest.mark.parametrize(
    "query", ["steps=0", "steps=-1", "steps=2.5", "steps=many", "steps=true", "guidance=NaN", "guidance=x", "height=0"]
)
def test_numbers_that_nothing_is_called_with(query):
    with pytest.raises(ValueError, match=f"{query.partition('=')[0]} must be a"):
        subjects([f"shapes?{query}"])


@pytest.mark.parametrize("config", ["- 1", "model: 5", "a: [", "data: [1]"])
def test_a_configuration_that_is_none(tmp_path, config):
    with pytest.raises(SubjectError, match=r"config\.yaml"):
        subjects([str(made_run(tmp_path / "mine", config))])
    assert len(subjects([str(made_run(tmp_path / "bare", "model: {source: shapes}\nsampling:\ndata:\n"))])) == 2
