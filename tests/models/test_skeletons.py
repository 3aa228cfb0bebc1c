"""Models without their weights: the same shapes, nothing read; cut ones are few blocks of every kind."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from tiny_sd3 import tiny_sd3
from tiny_sdxl import tiny_sdxl

from genrl.models import _pipelines, load_generator, skeletons, weightless
from genrl.models.backbones import SamBackbone, load_backbone
from genrl.precision import Precision

BLOCKS = ("JointTransformerBlock", "BasicTransformerBlock")
TINY = {"sd3": tiny_sd3, "sdxl": tiny_sdxl}


@pytest.fixture(scope="module", params=list(TINY))
def folder(request, tmp_path_factory):
    return str(TINY[request.param](tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def no_weights(monkeypatch):
    for name in ("load_file", "safe_open"):
        if hasattr(safetensors.torch, name):
            monkeypatch.setattr(safetensors.torch, name, lambda *_, **__: pytest.fail("weights were read"))
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("a pipeline was loaded"))
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))


def shapes(model):
    modules = [model.network, model.vae, *(getattr(model.pipeline, name) for name in model.encoders)]
    return [{name: (t.shape, t.dtype) for name, t in m.state_dict().items()} if m is not None else None for m in modules]


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_skeleton_is_the_model_without_its_numbers(folder, weights):
    options = {"max_sequence_length": 24, "precision": Precision(weights=weights)}
    real = load_generator(folder, **options)
    with skeletons():
        bare = load_generator(folder, **options)
    assert weightless() is None
    assert all(t.is_meta for m in (bare.network, bare.vae) for t in m.state_dict().values())
    assert shapes(bare) == shapes(real)
    told, said = bare.encode(["a red circle"] * 3), real.encode(["a red circle"] * 3)
    assert told.embeds.shape == said.embeds.shape and told.pooled.shape == said.pooled.shape
    assert told.embeds.dtype == said.embeds.dtype and told.embeds.is_meta
    for name in ("latent_shape", "size", "levels", "feature_width", "feature_side", "pooled_width"):
        assert getattr(bare, name) == getattr(real, name)
    assert bare.sigmas(5) == real.sigmas(5) and bare.student_sigmas(4) == real.student_sigmas(4)


def test_no_weights_are_read(folder, no_weights):
    with skeletons():
        load_generator(folder)
    with skeletons("cpu", cut=True):
        model = load_generator(folder)
    x = torch.randn(2, *model.latent_shape)
    cond = model.encode(["", ""])
    assert model.velocity(model.network, x, torch.tensor([0.3, 0.8]), cond).isfinite().all()
    assert all(getattr(model.pipeline, name) is None for name in model.encoders), "a cut model has no text encoders"


def test_a_large_network_is_cut_to_a_few_blocks_of_every_kind(folder, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path / "deep")
    (config,) = [tmp_path / "deep" / part / "config.json" for part in ("transformer", "unet") if (tmp_path / "deep" / part).is_dir()]
    found = json.loads(config.read_text())
    config.write_text(json.dumps(found | ({"num_layers": 7} if "num_layers" in found else {"transformer_layers_per_block": 3})))
    with skeletons(cut=True):
        whole = load_generator(str(tmp_path / "deep")).network
        monkeypatch.setattr(_pipelines, "CUT_ABOVE", 0)
        small = load_generator(str(tmp_path / "deep")).network
    kinds = [{type(module).__name__ for module in network.modules()} for network in (whole, small)]
    blocks = [sum(type(module).__name__ in BLOCKS for module in network.modules()) for network in (whole, small)]
    assert kinds[0] == kinds[1] and blocks[1] < blocks[0] / 2
    if "num_layers" in found:
        assert blocks == [7, 3]


def test_what_is_cut():
    assert _pipelines.cut({"num_layers": 24}) == {"num_layers": 3}
    assert _pipelines.cut({"num_layers": 24, "dual_attention_layers": list(range(13))}) == {
        "num_layers": 3,
        "dual_attention_layers": (0, 1, 2),
    }
    assert _pipelines.cut({"transformer_layers_per_block": [1, 2, 10]}) == {"transformer_layers_per_block": 1}


def test_a_backbone_without_its_weights(tmp_path, no_weights):
    from transformers import SamConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, global_attn_indexes=[1]
    )
    SamConfig(vision_config=vision).save_pretrained(tmp_path)
    with skeletons():
        found = load_backbone("sam", str(tmp_path))
    assert isinstance(found, SamBackbone) and all(p.is_meta for p in found.parameters())
    assert found.widths == (16,) and found.sizes == (4,)
