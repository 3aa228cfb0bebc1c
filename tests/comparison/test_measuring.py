"""What is measured of pictures on disk: of which pictures, and what cannot be had."""

import numpy as np
import pytest
import torch
from PIL import Image

from genrl.comparison import measuring
from genrl.comparison.pictures import name_of
from genrl.data import PromptError
from genrl.models.features import ModelError


def pictures(folder, prompts=2, images=2, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(prompts):
        for image in range(images):
            Image.new("RGB", (8, 8), (first + place, image, 0)).save(folder / name_of(place, image))
    return folder


def test_the_stamp_is_of_the_pictures_that_are_compared(tmp_path):
    """Fewer images of each, or another picture of the same size and time, must not find the features of those before."""
    folder = pictures(tmp_path / "a")
    stamp = measuring.stamp(folder, 2, 2)
    assert measuring.stamp(folder, 2, 1) != stamp and measuring.stamp(folder, 1, 2) != stamp
    assert measuring.stamp(pictures(tmp_path / "b"), 2, 2) == stamp, "the same pictures, copied, are the same"
    (folder / name_of(2, 0)).write_bytes(b"of a longer list")
    assert measuring.stamp(folder, 2, 2) == stamp
    Image.new("RGB", (8, 8), (0, 0, 9)).save(folder / name_of(1, 1))
    assert measuring.stamp(folder, 2, 2) != stamp


def test_references_of_one_name_and_size_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "extractor", lambda name, device: lambda images: images[:, :, 0, 0])
    found = []
    for name, first in (("a", 10), ("b", 20)):
        folder = pictures(tmp_path / name, first=first)
        extraction = measuring.Extraction(["shapes"], tmp_path / "kept", "cpu")
        found.append(measuring.reference_of(str(folder), extraction, "base", {}, 2).features["shapes"])
    sizes = [{path.name: path.stat().st_size for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert sizes[0] == sizes[1] and not torch.equal(*found)


def test_half_a_file_of_features_is_not_left_behind(tmp_path, monkeypatch):
    def broken(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    extraction = measuring.Extraction(["shapes"], tmp_path, "cpu")
    extraction._extractors["shapes"] = lambda images: images[:, :, 0, 0]
    monkeypatch.setattr(measuring, "save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        extraction.of("x", "same", lambda: [torch.zeros(2, 3, 8, 8)])
    monkeypatch.undo()
    for _ in range(2):
        assert extraction.of("x", "same", lambda: [torch.zeros(2, 3, 8, 8)])["shapes"].shape == (2, 3)
        (kept,) = tmp_path.glob("x-*.safetensors")
        kept.write_bytes(b"spoilt")


@pytest.mark.parametrize(("prompts", "images", "metrics"), [(1, 1, set()), (1, 4, {"fd/x"}), (2, 1, {"fd/x", "kid/x"})])
def test_few_pictures_have_the_distances_that_they_can(prompts, images, metrics):
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(2, prompts * images, 3)))
    groups = [row // images for row in range(prompts * images)]
    reference = measuring.Reference("base", {"x": rows[0]}, {}, len(rows[0]), groups)
    assert set(measuring.distances({"x": rows[1]}, reference, images)) == {"vendi/x"} | metrics


def test_a_subset_may_not_be_of_one_prompt():
    """Two real pictures make subsets of two, and two of four may be of one prompt."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3)))
    found = measuring.distances({"x": rows[:4]}, measuring.Reference("real", {"x": rows[4:]}, {}, 2), 2)
    assert set(found) == {"vendi/x", "fd/x"}


def test_the_same_pictures_everywhere():
    """Constant features: nothing differs, and nothing divides by zero."""
    rows = torch.ones(12, 4)
    reference = measuring.Reference("base", {"x": rows}, {}, 12, [row // 2 for row in range(12)])
    found = {name: entry["value"] for name, entry in measuring.distances({"x": rows}, reference, 2).items()}
    assert [found[name] for name in ("fd/x", "kid/x", "vendi/x")] == pytest.approx([0, 0, 1], abs=1e-9)
    assert np.isfinite(list(found.values())).all() and len(found) == 7


def test_what_is_no_reference(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "._1.png").write_bytes(b"of a Mac")
    with pytest.raises(PromptError, match="is a single picture"):
        measuring.look(str(tmp_path), ["shapes"])
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    assert [file.name for file in measuring.look(str(tmp_path), ["shapes"])[0]] == ["0.png", "1.png"]


@pytest.mark.parametrize("names", [["lpips:resnet"], ["lpips", "lpips:vgg"]])
def test_lpips_is_of_one_network(tmp_path, names):
    with pytest.raises(ModelError, match="LPIPS is of one network"):
        measuring.Extraction(names, tmp_path)
