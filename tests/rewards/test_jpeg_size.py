import io

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from genrl.reward import load_reward

NOISE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def size(images, **options) -> list[float]:
    return load_reward("jpeg_size", **options)(images, [""] * len(images), [{}] * len(images))


def test_it_is_the_length_of_the_file_in_kilobytes():
    buffer = io.BytesIO()
    pixels = (NOISE[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    assert size(NOISE) == [-len(buffer.getvalue()) / 1000]
    assert size(NOISE, grow=True) == [-value for value in size(NOISE)]


def test_it_rises_with_blur():
    blurred = [F.avg_pool2d(NOISE, n, stride=1, padding=n // 2, count_include_pad=False) for n in (1, 3, 5, 9, 17)]
    scores = size(torch.cat([*blurred, torch.full_like(NOISE, 0.5)]))
    assert scores == sorted(scores) and len(set(scores)) == len(scores)


def test_images_with_a_gradient_and_out_of_range_are_scored():
    assert size((NOISE * 3 - 1).requires_grad_()) == pytest.approx(size((NOISE * 3 - 1).clamp(0, 1)))
