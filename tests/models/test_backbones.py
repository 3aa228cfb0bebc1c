"""SAM and DINOv2 of the published architectures, tiny, against what transformers itself records; and the one that ships inside."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, SamConfig, SamModel, SamVisionConfig, SamVisionModel

from genrl.discriminator import PixelDiscriminator
from genrl.models.backbones import DinoBackbone, SamBackbone, ShapesBackbone, check_backbone, load_backbone
from genrl.models.sd3 import ModelError
from genrl.worlds.shapes.proxies import load_proxy
from genrl.worlds.shapes.scenes import random_scene, render


def saved(model, folder):
    torch.manual_seed(0)
    for parameter in model.parameters():
        # SAM's position embeddings start at zero: random weights everywhere make differences visible
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


def tiny_sam():
    return SamVisionConfig(
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_ratio=2.0,
        window_size=3,
        global_attn_indexes=[1, 3],
        num_pos_feats=4,
    )


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """A whole SAM, as published."""
    prompts = dict(hidden_size=8, image_size=64, patch_size=8, mask_input_channels=4)
    masks = dict(hidden_size=8, mlp_dim=8, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8)
    config = SamConfig(vision_config=tiny_sam().to_dict(), prompt_encoder_config=prompts, mask_decoder_config=masks)
    return saved(SamModel(config), tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2)
    return saved(Dinov2Model(config), tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module", params=["sam", "dinov2", "shapes"])
def backbone(request, sam, dino):
    options = {"sam": {"source": sam}, "dinov2": {"source": dino, "taps": (0, 3)}, "shapes": {}}
    return load_backbone(request.param, **options[request.param])


def pictures(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_maps_are_as_announced_and_the_pixels_get_gradients(backbone):
    images = pictures(size=48).requires_grad_()
    maps = backbone.train()(images)
    assert [m.shape for m in maps] == [(2, c, s, s) for c, s in zip(backbone.widths, backbone.sizes, strict=True)]
    for taken in maps:
        (gradient,) = torch.autograd.grad(taken.square().sum(), images, retain_graph=True)
        assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert not any(p.requires_grad for p in backbone.parameters()) and not any(m.training for m in backbone.modules())


def test_nothing_is_kept_for_pixels_that_want_no_gradient(backbone):
    assert all(taken.grad_fn is None for taken in backbone(pictures()))


def test_a_discriminator_on_each_keeps_it_out_of_its_weights(backbone):
    judge = PixelDiscriminator(backbone, 16)
    judge(pictures(3)).sum().backward()
    assert all(name.startswith("heads.") for name in judge.state_dict())
    assert all(p.grad is None for p in backbone.parameters())


def test_sams_maps_are_the_raw_outputs_of_its_blocks(sam):
    ours, theirs = SamBackbone(sam, (0, 1, 3)), SamModel.from_pretrained(sam).eval().vision_encoder
    states = theirs(ours.prepared(pictures()), output_hidden_states=True).hidden_states  # the first are the patches
    for taken, index in zip(ours(pictures()), (1, 2, 4), strict=True):
        assert torch.allclose(taken.permute(0, 2, 3, 1), states[index], atol=1e-5)
    assert [t.equal(s) for t, s in zip(SamBackbone(sam)(pictures()), ours(pictures())[1:], strict=True)] == [True, True]
    assert len(SamBackbone(sam, (1,)).blocks) == 2, "later blocks and the neck are not carried along"


def test_a_sam_saved_without_its_decoder_is_the_same(sam, tmp_path):
    whole = SamModel.from_pretrained(sam)
    alone = SamVisionModel(whole.config.vision_config)
    alone.vision_encoder.load_state_dict(whole.vision_encoder.state_dict())
    alone.save_pretrained(tmp_path)
    assert all(a.equal(b) for a, b in zip(SamBackbone(str(tmp_path))(pictures()), SamBackbone(sam)(pictures()), strict=True))


def test_sam_gets_its_pixels_as_its_own_processor_makes_them(sam):
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    raw = (pictures(1)[0] * 255).round().to(torch.uint8)
    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    theirs = torch.as_tensor(np.asarray(processor(raw.permute(1, 2, 0).numpy()).pixel_values[0]))
    got = SamBackbone(sam).prepared(raw[None] / 255)[0]
    assert torch.allclose(got, theirs, atol=1e-4)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(got, (raw.float() - mean[:, None, None]) / std[:, None, None], atol=1e-4)


def test_sam_at_another_size(sam):
    small, own = SamBackbone(sam, size=32), SamBackbone(sam)
    assert small.sizes == (4, 4) and small.position.shape == (1, 4, 4, 16)
    assert torch.allclose(small.position.mean((1, 2)), own.position.mean((1, 2)), atol=0.1)
    assert small(pictures(1, 32))[1].shape == (1, 16, 4, 4)
    assert SamBackbone(sam, size=128)(pictures(1))[0].shape == (1, 16, 16, 16)


def test_dinos_maps_are_the_raw_outputs_of_its_blocks_without_the_class_token(dino):
    theirs = Dinov2Model.from_pretrained(dino).eval()
    for size in (0, 84):  # its own, and one for which it interpolates its position embeddings
        ours = DinoBackbone(dino, (0, 2, 3), size)
        side = (size or 56) // 14
        states = theirs(ours.prepared(pictures()), output_hidden_states=True).hidden_states
        for taken, index in zip(ours(pictures()), (1, 3, 4), strict=True):
            assert torch.allclose(taken.permute(0, 2, 3, 1), states[index][:, 1:].reshape(2, side, side, 16), atol=1e-5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = pictures(size=84)
    assert torch.allclose(ours.prepared(images), (images - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    assert DinoBackbone(dino, (0,), 60).size == 56 and DinoBackbone(dino, (0,), 5).size == 14


@pytest.mark.parametrize("name", ["sam", "dinov2"])
def test_checkpointed_gradients_are_the_same_and_bfloat16_stays_near(name, sam, dino):
    source, taps = {"sam": sam, "dinov2": dino}[name], (1, 3)
    grads, maps = [], []
    for options in ({}, {"checkpointing": True}, {"dtype": torch.bfloat16}):
        images = pictures().requires_grad_()
        maps.append(load_backbone(name, source, taps=taps, **options)(images))
        sum(taken.float().square().mean() for taken in maps[-1]).backward()
        grads.append(images.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-6 * grads[0].abs().max().item()) and grads[0].abs().max() > 0
    assert maps[2][1].dtype == torch.bfloat16 and grads[2].dtype == torch.float32
    assert torch.allclose(maps[2][1].float(), maps[0][1], atol=0.1 * maps[0][1].abs().max().item())


def test_the_shapes_backbone_is_a_proxys_tower():
    proxy, ours = load_proxy(4), ShapesBackbone()
    seen = []
    handles = [block.register_forward_hook(lambda *a: seen.append(a[2])) for block in proxy.clip.visual.transformer.resblocks]
    proxy.image_features(pictures())
    for handle in handles:
        handle.remove()
    assert len(seen) == 3
    for taken, tokens in zip(ours(pictures())[1:], seen, strict=True):
        assert torch.allclose(taken.permute(0, 2, 3, 1).reshape(2, 16, 48), tokens[:, 1:], atol=1e-5)
    ours.to("meta")
    assert not proxy.clip.visual.conv1.weight.is_meta, "the proxy may be a reward and stays where it is"


def test_the_pyramid_is_the_pixels_in_a_basis_of_even_spread():
    ours, rng = ShapesBackbone(), np.random.default_rng(0)
    images = torch.from_numpy(np.stack([render(random_scene(rng)) for _ in range(64)]))
    low, middle, fine = ours(images)[0].split((3, 9, 36), dim=1)
    for band in (low, middle, fine):
        assert band.std().item() == pytest.approx(1, abs=0.15)
    assert torch.allclose(low * 1.2, (images * 2 - 1).unflatten(2, (16, 4)).unflatten(4, (16, 4)).sum((3, 5)) / 4, atol=1e-5)
    energy = sum((band * spread).square().sum() for band, spread in zip((low, middle, fine), (1.2, 0.31, 0.096), strict=True))
    assert energy.item() == pytest.approx((images * 2 - 1).square().sum().item(), rel=1e-4), "nothing is lost"
    flat = ours(torch.full((1, 3, 64, 64), 0.3))[0]
    assert flat[:, :3].abs().min() > 0.1 and flat[:, 3:].abs().max() < 1e-5


def test_what_cannot_be_loaded_says_why(sam, dino, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'dinov2'"):
        load_backbone("dino2")
    with pytest.raises(ValueError, match="there are sam, dinov2, shapes"):
        check_backbone("resnet")
    with pytest.raises(ValueError, match="takes no source"):
        load_backbone("shapes", sam)
    for source in ("/nowhere/at/all", "./nowhere", "sam"):
        with pytest.raises(ModelError, match="no folder"):
            check_backbone("sam", source)
    with pytest.raises(ModelError, match=r"config\.json"):
        check_backbone("sam", str(tmp_path))
    with pytest.raises(ModelError, match="of type 'dinov2'; this backbone takes sam"):
        load_backbone("sam", dino)
    with pytest.raises(ModelError, match="looked up on the hub"):
        load_backbone("sam", "nobody/nothing")
    with pytest.raises(ModelError, match="0 to 3; got"):
        load_backbone("dinov2", dino)
    with pytest.raises(ModelError, match="ascending"):
        load_backbone("sam", sam, taps=(3, 1))
    with pytest.raises(ModelError, match="multiples of 8"):
        load_backbone("sam", sam, size=60)
    for name, source in (("sam", sam), ("sam", "owner/name"), ("dinov2", ""), ("shapes", "")):
        check_backbone(name, source)


def test_a_model_with_tensors_missing_is_refused(dino, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = copy.copy(load_file(f"{dino}/model.safetensors"))
    del tensors["encoder.layer.2.norm1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(Dinov2Config.from_pretrained(dino).to_dict()))
    with pytest.raises(ModelError, match=r"lacks 1 tensors of dinov2, 'encoder.layer.2.norm1.weight'"):
        load_backbone("dinov2", str(tmp_path), taps=(0,))


def test_names_are_checked_without_loading_a_model_library():
    code = "import sys; from genrl.models.backbones import check_backbone; check_backbone('shapes'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"diffusers", "transformers", "open_clip"}.isdisjoint(loaded)
