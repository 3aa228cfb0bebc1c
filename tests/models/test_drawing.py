"""Pictures of finished pipelines, as plain diffusers draws them."""

import math
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny_sd3 import tiny_sd3

from genrl.models.drawing import LORA_WEIGHTS, Painter, Settings, hash_of
from genrl.models.sd3 import ModelError, lora_config

PROMPTS = ["a red circle", "a circle"]
FEW = Settings(steps=2, guidance=3.0, options={"max_sequence_length": 8})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd3(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def painter(folder):
    return Painter(str(folder), FEW)


def test_it_is_the_pipeline_s_own_picture(folder, painter):
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    expected = pipeline(PROMPTS[0], num_inference_steps=2, guidance_scale=3.0, max_sequence_length=8, generator=generator, output_type="pt")
    torch.testing.assert_close(painter(PROMPTS[:1], [7]), expected.images, atol=1e-5, rtol=0)


def test_an_image_depends_on_its_seed_and_not_on_the_batch(painter):
    both = painter(PROMPTS, [1, 2])
    assert both.shape == (2, 3, 32, 32) and both.min() >= 0 and both.max() <= 1
    torch.testing.assert_close(painter(PROMPTS[1:], [2]), both[1:], atol=1e-5, rtol=0)
    assert (painter(PROMPTS[1:], [3]) - both[1:]).abs().max() > 1e-3


def test_the_record_has_the_settings_with_the_pipeline_s_defaults(folder, painter):
    assert painter.used == {"steps": 2, "guidance": 3.0, "height": None, "width": None, "max_sequence_length": 8}
    assert Painter(str(folder), Settings()).used == {"steps": 28, "guidance": 7.0, "height": None, "width": None}


def test_an_adapter_changes_the_picture_and_the_hash(folder, painter, tmp_path):
    from peft import get_peft_model_state_dict

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.transformer.add_adapter(lora_config(2, 2, ["to_q", "to_k"]))
    for name, parameter in pipeline.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    StableDiffusion3Pipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(pipeline.transformer))
    assert (tmp_path / LORA_WEIGHTS).is_file()
    adapted = Painter(str(folder), FEW, lora=str(tmp_path))
    assert (adapted(PROMPTS, [1, 2]) - painter(PROMPTS, [1, 2])).abs().max() > 1e-3
    assert adapted.sha256() != painter.sha256()


def test_the_hash_is_of_contents_not_of_places(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert hash_of(copy) == hash_of(folder)
    config = copy / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    assert hash_of(copy) != hash_of(folder)


def test_what_is_absent_is_left_out(folder):
    bare = Painter(str(folder), Settings(steps=1, options={"max_sequence_length": 1}, absent=("text_encoder_3", "tokenizer_3")))
    assert bare.pipeline.text_encoder_3 is None and bare.used["absent"] == ["text_encoder_3", "tokenizer_3"]
    assert bare(PROMPTS, [1, 2]).shape == (2, 3, 32, 32)


def test_a_setting_that_the_pipeline_does_not_have(folder):
    with pytest.raises(ModelError, match="has no setting 'colour'"):
        Painter(str(folder), Settings(options={"colour": "red"}))


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        Painter(str(tmp_path / "none"), Settings())
    with pytest.raises(ModelError, match="cannot load"):
        Painter(str(tmp_path), Settings())


def test_an_adapter_that_is_none(folder, tmp_path):
    with pytest.raises(ModelError, match="cannot put the adapter"):
        Painter(str(folder), FEW, lora=str(tmp_path))


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"steps": True}, {"steps": 2.5}, {"height": -1}, {"guidance": math.nan}, {"guidance": "x"}]
)
def test_a_setting_that_is_no_number(settings):
    with pytest.raises(ModelError, match="must be a"):
        Settings(**settings)


@pytest.mark.parametrize("option", ["prompt", "generator", "output_type"])
def test_what_is_set_for_each_picture_is_no_setting(folder, option):
    with pytest.raises(ModelError, match=f"{option} of the call .* is set for each picture"):
        Painter(str(folder), Settings(options={option: "x"}))


@pytest.mark.parametrize("options", [{"height": 33}, {"callback_on_step_end": "x"}, {"return_dict": False}])
def test_what_a_value_leads_to_is_one_message(folder, options):
    with pytest.raises(ModelError, match="cannot be called with"):
        Painter(str(folder), Settings(steps=1, options={"max_sequence_length": 8} | options))(PROMPTS, [1, 2])
