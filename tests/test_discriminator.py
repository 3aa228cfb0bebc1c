import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genrl.discriminator import LatentHead, PixelDiscriminator, halvings
from genrl.losses.adversarial import DISCRIMINATOR, accuracy, hinge
from genrl.models.backbones import ShapesBackbone
from genrl.policy import ACTOR, Copies, FlowPolicy
from genrl.worlds.shapes.scenes import random_scene, render


class Pools(nn.Module):
    """A frozen backbone with a parameter, a buffer and two maps."""

    widths, sizes = (4, 3), (16, 4)

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        self.register_buffer("seen", torch.zeros(1))
        self.requires_grad_(False).eval()

    def forward(self, images):
        return self.mix(F.adaptive_avg_pool2d(images, 16)).to(torch.bfloat16), F.adaptive_avg_pool2d(images, 4)


def convolutions(module):
    return [(m.in_channels, m.kernel_size[0], m.stride[0]) for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(("side", "expected"), [(64, 8), (37, 4), (32, 4), (16, 4), (8, 4), (7, 7), (4, 4), (1, 1)])
def test_a_head_halves_thrice_at_most_and_never_below_four(side, expected):
    head = PixelDiscriminator(type("One", (Pools,), {"widths": (5,), "sizes": (side,)})(), width=16).heads[0]
    seen = []
    pool = next(m for m in head.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    pool.register_forward_pre_hook(lambda _, a: seen.append(a[0].shape[2:]))
    assert head(torch.randn(2, 5, side, side)).shape == (2, 1)
    assert seen == [(expected, expected)]
    assert head(torch.randn(2, 5, side, side + 9)).shape == (2, 1), "a wide map is as good"


def test_the_head_is_adms():
    head = PixelDiscriminator(type("Sam", (Pools,), {"widths": (768,), "sizes": (64,)})()).heads[0]
    assert convolutions(head) == [(768, 4, 2), (256, 4, 2), (256, 4, 2), (256, 3, 1)]
    assert [m.num_groups for m in head.modules() if isinstance(m, nn.GroupNorm)] == [32] * 4


def test_logits_are_the_mean_over_the_taps():
    judge, images = PixelDiscriminator(Pools(), 16), torch.rand(5, 3, 32, 32)
    logits = judge(images)
    each = [head(taken.float()) for head, taken in zip(judge.heads, judge.backbone(images), strict=True)]
    assert logits.shape == (5,) and logits.dtype == torch.float32
    assert torch.allclose(logits, (each[0] + each[1])[:, 0] / 2, atol=1e-6)
    assert torch.allclose(logits[1:2], judge(images[1:2]), atol=1e-5), "an image is judged alone"


def test_an_untrained_one_favours_nobody_but_gradients_flow():
    judge, images = PixelDiscriminator(ShapesBackbone()), torch.rand(4, 3, 64, 64, requires_grad=True)
    logits = judge(images)
    assert logits.abs().max() < 0.3 and logits.std() > 0
    logits.sum().backward()
    assert images.grad is not None and (images.grad.flatten(1).abs().amax(1) > 0).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in judge.parameters())


def test_only_the_heads_are_the_modules_own():
    backbone = Pools()
    judge = PixelDiscriminator(backbone, 16)
    own = {*judge.state_dict(), *dict(judge.named_parameters()), *dict(judge.named_buffers())}
    assert own and all(name.startswith("heads.") for name in own)
    policy = FlowPolicy(SimpleNamespace(precision=None), Copies(nn.Linear(1, 1), (ACTOR,)), {DISCRIMINATOR: judge})
    assert set(policy.tensors(DISCRIMINATOR)) == own, "what a checkpoint keeps"
    before = copy.deepcopy(backbone.state_dict())
    judge.train().requires_grad_(True)
    assert not backbone.training and not backbone.mix.weight.requires_grad
    optimizer = torch.optim.SGD(judge.parameters(), lr=1.0)
    judge(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert backbone.mix.weight.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_the_backbone_follows_to_a_device_and_keeps_its_dtype():
    backbone = Pools().to(torch.bfloat16)
    judge = PixelDiscriminator(backbone, 16).float()
    assert backbone.mix.weight.dtype == torch.bfloat16
    judge.to("meta")
    assert backbone.mix.weight.is_meta and backbone.seen.is_meta and backbone.mix.weight.dtype == torch.bfloat16
    assert PixelDiscriminator(lambda_backbone(), 8).to("meta").heads[0][0].weight.is_meta, "one that is no module needs no device"


def lambda_backbone():
    class Plain:
        widths, sizes = (3,), (16,)

        def __call__(self, images):
            return (images,)

    return Plain()


def test_the_latent_head_takes_the_maps_of_any_model():
    for side, left in [(32, 4), (16, 2), (4, 2), (1, 1)]:
        head = LatentHead(6, side, 16)
        features = torch.randn(3, 6, side, side, requires_grad=True)
        logits = head(features)
        assert logits.shape == (3,) and logits.abs().max() < 0.5
        assert head.layers(features).shape[2:] == (left, left)
        logits.sum().backward()
        assert features.grad.abs().max() > 0
    assert convolutions(LatentHead(1280)) == [(1280, 4, 2), (256, 4, 2), (256, 4, 2), (256, 1, 1)], "DMD2's, up to its last crossing"
    assert halvings(64, 4) == 3 and halvings(3, 4) == 0


@pytest.mark.parametrize("build", [lambda: PixelDiscriminator(Pools(), 12), lambda: LatentHead(3, 8, 12)])
def test_a_width_that_does_not_group(build):
    with pytest.raises(ValueError, match="multiple of 8; got 12"):
        build()


def blurred(images):
    kernel = torch.tensor([0.25, 0.5, 0.25])
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), torch.outer(kernel, kernel).expand(3, 1, 3, 3), groups=3)


def test_it_learns_to_tell_pictures_from_blurred_ones():
    rng = np.random.default_rng(0)

    def pictures(count):
        return torch.from_numpy(np.stack([render(random_scene(rng)) for _ in range(count)]))

    judge = PixelDiscriminator(ShapesBackbone(), 96)
    optimizer = torch.optim.Adam(judge.parameters(), lr=5e-4, betas=(0.5, 0.99))
    unseen = torch.cat([pictures(64), blurred(pictures(64))])
    for _ in range(55):
        loss = hinge(*judge(torch.cat([pictures(16), blurred(pictures(16))])).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert accuracy(*judge(unseen).chunk(2)) > 0.8
    images = blurred(pictures(8)).requires_grad_()
    judge(images).sum().backward()
    with torch.no_grad():
        step = 0.02 * images.grad / images.grad.flatten(1).norm(dim=1)[:, None, None, None]
        assert (judge(images + step) > judge(images)).all(), "its gradient leads a picture towards what is real"
