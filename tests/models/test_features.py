"""Feature extractors, on tiny random models of the architectures that are published."""

import pytest
import torch
from tiny_clip import hub_clip, pictures, spread

from genrl.models._source import ModelError
from genrl.models.features import EXTRACTORS, Lpips, extractor, middle_crop
from genrl.pixels import to_pil


def test_clip_is_the_model_s_own_embedding(tmp_path):
    from transformers import CLIPImageProcessor

    model, images = hub_clip(tmp_path), pictures()
    own = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)(to_pil(images), return_tensors="pt").pixel_values
    expected = model.visual_projection(model.vision_model(own).pooler_output)
    found = extractor(f"clip:{tmp_path}", "cpu")(images)
    assert found.shape == (3, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected.detach(), atol=0.1, rtol=0.05)


def test_dinov2_is_the_class_token(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = spread(Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)))
    model.save_pretrained(tmp_path)
    images = pictures(256, 256)
    from genrl.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

    expected = model(pixel_values=normalise(images[..., 16:-16, 16:-16], IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(f"dinov2:{tmp_path}", "cpu")(images), expected.detach(), atol=1e-4, rtol=1e-4)


def test_shapes_needs_no_weights():
    images = torch.rand(2, 3, 64, 64)
    found = extractor("shapes")(images)
    assert found.shape == (2, 160)
    torch.testing.assert_close(found.view(2, 5, 32).norm(dim=-1), torch.ones(2, 5))
    assert extractor("shapes")(torch.rand(1, 3, 80, 96)).shape == (1, 160)


def test_a_row_does_not_depend_on_its_neighbours(tmp_path):
    hub_clip(tmp_path)
    network, images = extractor(f"clip:{tmp_path}", "cpu"), pictures()
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "words"), [("clipp", "did you mean 'clip'"), ("nothing-like-it", "known: clip")])
def test_an_unknown_name(name, words):
    with pytest.raises(ModelError, match=words):
        extractor(name)


def test_weights_that_cannot_be_had(tmp_path):
    with pytest.raises(ModelError, match="could not be made ready"):
        extractor(f"clip:{tmp_path}", "cpu")


def test_inception_says_what_to_install_or_needs_its_weights(tmp_path):
    with pytest.raises(ModelError, match=r"genrl-image|could not be made ready"):
        extractor(f"inception:{tmp_path / 'none.pth'}", "cpu")


def test_the_patch_is_the_middle_and_not_resized():
    images = torch.rand(1, 3, 301, 305)
    assert torch.equal(middle_crop(images, 299), images[..., 1:300, 3:302])
    with pytest.raises(ModelError, match="does not fit"):
        middle_crop(torch.rand(1, 3, 256, 400), 299)


def test_every_extractor_is_in_the_table_of_the_docs():
    from genrl.models import features

    assert all(f"``{name}``" in features.__doc__ for name in EXTRACTORS)


@pytest.fixture(scope="module")
def lpips():
    import lpips

    # random backbone, published heads: distances mean nothing, and are not negative
    return Lpips(device="cpu", network=lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False))


def test_lpips_is_the_mean_over_pairs(lpips):
    images = pictures(64, 64)
    pairs = [lpips.network(images[i : i + 1], images[j : j + 1], normalize=True).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert lpips(images) == pytest.approx(sum(pairs) / 3, rel=1e-4) and lpips(images) > 0
    assert lpips(images[:1].expand(3, -1, -1, -1)) == pytest.approx(0, abs=1e-6)


def test_lpips_of_one_picture_or_of_small_ones(lpips):
    assert lpips(pictures(64, 64)[:1]) != lpips(pictures(64, 64)[:1])
    assert lpips(pictures(32, 48)) > 0
