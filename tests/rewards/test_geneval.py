"""GenEval's rules on hand-made detections, its detector on a tiny random Mask2Former."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from tiny_clip import hub_clip, pictures, refuses, spread
from torch.nn import functional as F

from genrl.pixels import to_pil
from genrl.reward import RewardError, check_metadata, check_scores
from genrl.rewards.geneval import (
    COCO,
    COLOURS,
    GREY,
    Detection,
    Geneval,
    check,
    class_names,
    cut_out,
    evaluate,
    instances,
    keep,
    overlap,
    relations,
)

NAME = "genrl.rewards.geneval:Geneval"


def thing(name, x=0, y=0, score=0.9, size=10) -> Detection:
    return Detection(name, score, (x, y, x + size, y + size))


def by_class(*things) -> dict[str, list[Detection]]:
    return keep(things, 0.3)


def dog(count=1, **more) -> dict:
    return {"class": "dog", "count": count} | more


CAT = {"class": "cat", "count": 1}
DOGS = [thing("dog", 20 * index, score=0.9 - 0.1 * index) for index in range(4)]
NEAR = {"include": [CAT, dog(position=["left of", 0])]}
RULES = [
    # wanted, found, colours of the dogs from the surest on, strict, graded
    ("one, there", {"include": [dog()]}, DOGS[:1], [], 1, 1),
    ("one, missing", {"include": [dog()]}, [], [], 0, 0),
    ("surplus is no mistake unless excluded, and costs a share", {"include": [dog(2)]}, DOGS[:3], [], 1, 0.5),
    ("much surplus is no debt", {"include": [dog(1)]}, DOGS, [], 1, 0),
    ("surplus excluded", {"include": [dog(2)], "exclude": [dog(3)]}, DOGS[:3], [], 0, 0.25),
    ("the number excluded from above", {"include": [dog(2)], "exclude": [dog(3)]}, DOGS[:2], [], 1, 1),
    ("two of three", {"include": [dog(3)]}, DOGS[:2], [], 0, 2 / 3),
    ("one of two classes", {"include": [CAT, dog()]}, DOGS[:1], [], 0, 0.5),
    ("exclusion alone, kept", {"include": [], "exclude": [CAT]}, DOGS, [], 1, 1),
    ("exclusion alone, broken", {"include": [], "exclude": [dog()]}, DOGS, [], 0, 0),
    ("right colour", {"include": [dog(color="red")]}, DOGS[:1], ["red"], 1, 1),
    ("wrong colour", {"include": [dog(color="red")]}, DOGS[:1], ["blue"], 0, 0.5),
    ("one of two in colour", {"include": [dog(2, color="red")]}, DOGS[:2], ["red", "blue"], 0, 0.75),
    ("no colour without the number", {"include": [dog(2, color="red")]}, DOGS[:1], ["red"], 0, 0.25),
    ("the surest alone is looked at", {"include": [dog(color="red")]}, DOGS[:2], ["red", "blue"], 1, 0),
    ("relation holds", NEAR, [thing("cat", 100), thing("dog")], [], 1, 1),
    ("relation violated earns nothing", NEAR, [thing("cat"), thing("dog", 100)], [], 0, 2 / 3),
    ("relation to what is missing", NEAR, [thing("dog")], [], 0, 1 / 3),
    ("relation of what is missing", NEAR, [thing("cat")], [], 0, 1 / 3),
    (
        "relation of the wrong colour",
        {"include": [CAT, dog(color="red", position=["left of", 0])]},
        [thing("cat", 99), DOGS[0]],
        ["blue"],
        0,
        0.5,
    ),
    (
        "one of two violates the relation",
        {"include": [CAT, dog(2, position=["left of", 0])]},
        [thing("cat", 100), thing("dog"), thing("dog", 200)],
        [],
        0,
        2 / 3,
    ),
]


@pytest.mark.parametrize(("why", "wanted", "found", "colours", "strict", "graded"), RULES, ids=[rule[0] for rule in RULES])
def test_rules(why, wanted, found, colours, strict, graded):
    check(wanted, COCO)

    def named(things):
        assert all(thing.name == "dog" for thing in things)
        return colours[: len(things)]

    assert evaluate(by_class(*found), wanted, named) == strict
    assert evaluate(by_class(*found), wanted, named, graded=True) == pytest.approx(graded)
    assert strict == 1 or graded < 1


def test_nothing_wanted_cannot_be_scored():
    assert math.isnan(evaluate({}, {"include": []}, list)) and math.isnan(evaluate({}, {"include": [], "exclude": []}, list, graded=True))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (-30, -30, {"left of", "above"}),
        # 3 to the side of 42 is less than half of the way
        (-3, 42, {"below"}),
        (0, 0, set()),
        # within a tenth of the summed sizes, 2
        (2, 0, set()),
        (2, 2, set()),
        # (4 - 2) / 4 is half, and more than that is asked for
        (4, 0, set()),
        (4.1, 0, {"right of"}),
    ],
)
def test_relations(x, y, expected):
    assert relations(thing("dog", 100 + x, 100 + y), thing("cat", 100, 100)) == expected


def test_what_is_kept():
    things = [thing("dog", score=score) for score in (0.3, 0.31, 0.95, 0.5)] + [thing("cat", score=0.2)]
    assert {name: [d.score for d in kept] for name, kept in keep(things, 0.3).items()} == {"dog": [0.95, 0.5, 0.31]}
    assert [d.score for d in keep(things, 0.9)["dog"]] == [0.95]
    assert len(keep([thing("dog", score=0.5 + 0.01 * n) for n in range(30)], 0.3)["dog"]) == 16
    # edges count as pixels: 11 x 11 each, 6 x 11 in common
    a, b = thing("dog"), thing("dog", 5, score=0.8)
    assert overlap(a, b) == pytest.approx(66 / (242 - 66)) and overlap(a, a) == 1 and overlap(a, thing("dog", 50)) == 0
    assert len(keep([a, b], 0.3, max_overlap=0.37)["dog"]) == 1 and len(keep([a, b], 0.3, max_overlap=0.38)["dog"]) == 2
    assert len(keep([a, a], 0.3)["dog"]) == 2


def test_metadata_that_cannot_be_met_is_refused():
    for wanted, why in [
        ({"include": [{"class": "mouse", "count": 1}]}, "no class 'mouse'; did you mean computer mouse"),
        ({"include": [dog(0)]}, "whole number from 1 on; got 0"),
        ({"include": [dog(color="teal")]}, "one of red, orange"),
        ({"include": [dog(position=["left of", 0])]}, "index of an earlier entry"),
        ({"include": [CAT, dog(position=["near", 0])]}, r"left of \| right of"),
        ({"exclude": [{"class": "dragon"}]}, "no class 'dragon'"),
    ]:
        with pytest.raises(RewardError, match=why):
            check(wanted, COCO)


def test_cut_out_paints_the_surroundings_grey():
    image, mask = torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 1:6] = True
    cut = cut_out(image, Detection("dog", 1.0, (1, 2, 6, 5), mask))
    assert cut.shape == (1, 3, 3, 5) and torch.equal(cut[0, :, :2], image[:, 2:4, 1:6]) and (cut[0, :, 2] == GREY).all()


def test_classes_of_coco_take_geneval_s_names():
    published = {index: name.removeprefix("computer ").removeprefix("tv ") for index, name in enumerate(COCO)}
    assert published[64] == "mouse" and class_names(published) == COCO and len(set(COCO)) == 80
    assert class_names({1: "b", 0: "a"}) == ("a", "b")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("tiny")
    stages = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    sizes = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "dim_feedforward": 16, "encoder_feedforward_dim": 16}
    layers = {"num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 3, "num_queries": 6}
    labels = {index: name for index, name in enumerate(("person", "dog", "cat", "car"))}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(image_size=64, patch_size=4, embed_dim=8, **stages), **sizes, **layers, id2label=labels
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    spread(model)
    with torch.no_grad():  # so that classes are told apart, and queries
        model.class_predictor.weight.normal_()
        model.model.transformer_module.queries_features.weight.normal_(std=2)
    model.save_pretrained(where / "detector")
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}, num_labels=4).save_pretrained(where / "detector")
    hub_clip(where / "clip")
    return {"model": str(where / "detector"), "clip": str(where / "clip"), "device": "cpu"}


def same_as_transformers(reward, seen, output, threshold, size):
    """Classes, scores and masks of ``post_process_instance_segmentation``; boxes that hold their mask and no more."""
    options = {"threshold": threshold, "target_sizes": [size] * len(seen), "return_binary_maps": True}
    for mine, theirs in zip(seen, reward.processor.post_process_instance_segmentation(output, **options), strict=True):
        info = sorted(theirs["segments_info"], key=lambda s: -s["score"])
        mine = sorted(mine, key=lambda d: -d.score)
        assert [d.name for d in mine] == [reward.names[s["label_id"]] for s in info]
        assert [d.score for d in mine] == pytest.approx([s["score"] for s in info], abs=1e-5)
        for one, segment in zip(mine, info, strict=True):
            assert torch.equal(one.mask, theirs["segmentation"][segment["id"]].bool())
            left, top, right, bottom = one.box
            assert one.mask[top:bottom, left:right].sum() == one.mask.sum()
            assert one.mask[top].any() and one.mask[bottom - 1].any() and one.mask[:, left].any() and one.mask[:, right - 1].any()


def test_detections_are_transformers_own(folders):
    reward, images = Geneval(**folders, threshold=0.05), pictures(48, 80)
    with torch.no_grad():
        output = reward.network(**reward.processor(images=to_pil(images), return_tensors="pt"))
        seen = reward.detect(images)
    assert len({thing.name for things in seen for thing in things}) > 1 and len(seen[0]) > 3
    same_as_transformers(reward, seen, output, 0.05, (48, 80))


def test_boxes_and_thresholds_are_transformers_own(folders):
    """On heads made by hand: small blobs, one of them empty, and classes of any probability."""
    reward = Geneval(**folders)
    classes, masks = 2 * torch.randn(2, 6, 5), torch.full((2, 6, 24, 24), -3.0)
    for query in range(5):
        masks[0, query, 3 * query : 3 * query + 4, 2 + query : 12] = 0.5 + query
        masks[1, query, 20 - 2 * query :, : 3 + query] = 2.0
    output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    for threshold in (0.1, 0.3, 0.5):
        seen = [instances(*heads, (60, 100), threshold, reward.names) for heads in zip(classes, masks, strict=True)]
        assert len({thing.box for things in seen for thing in things}) > 1
        same_as_transformers(reward, seen, output, threshold, (60, 100))
    assert instances(classes[0], masks[0], (60, 100), 0.999, reward.names) == []


def test_colours_are_clip_s_zero_shot(folders):
    from transformers import CLIPImageProcessor

    reward = Geneval(**folders)
    model, processor = reward.clip.network, CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    with torch.no_grad():  # so that words and pictures are told apart
        model.text_model.embeddings.token_embedding.weight.normal_(std=3)
        model.vision_model.embeddings.patch_embedding.weight.normal_()
        rows = []
        for colour in COLOURS:
            texts = [f"a photo of a {colour} dog", f"a photo of a {colour}-colored dog", f"a photo of a {colour} object"]
            said = model.get_text_features(reward.clip.tokens(texts)).pooler_output
            rows.append(F.normalize(said, dim=-1).mean(0))
        rows = F.normalize(torch.stack(rows), dim=-1)
        things = [Detection("dog", 1.0, (4, 3, 40, 30)), Detection("dog", 1.0, (50, 10, 60, 48)), Detection("dog", 1.0, (0, 0, 80, 48))]
        named = set()
        for image in [*pictures(48, 80), *torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 48, 80)]:
            crops = [to_pil(image[None])[0].crop(thing.box) for thing in things]
            seen = model.get_image_features(processor(crops, return_tensors="pt").pixel_values).pooler_output
            expected = [COLOURS[index] for index in (seen @ rows.T).argmax(-1)]
            assert reward.colours(image, things) == expected
            named |= set(expected)
    assert len(named) > 2


def test_the_whole_reward(folders):
    reward, images = Geneval(**folders, threshold=0.05, counting_threshold=0.99), pictures(48, 80)
    surest = max(reward.detect(images)[0], key=lambda thing: thing.score).name
    (colour,) = reward.colours(images[0], [max(reward.detect(images)[0], key=lambda thing: thing.score)])
    include = [{"class": surest, "count": 1, "color": colour}]
    other = next(name for name in COLOURS if name != colour)
    metadata = [{"include": include}, {"include": [include[0] | {"color": other}]}, {"include": include, "tag": "counting"}]
    same = images[:1].expand(3, -1, -1, -1)
    assert reward(same, [""] * 3, metadata) == [1, 0, 0]
    assert check_scores("geneval", reward(same[:1], [""], [{"include": []}]), 1).isnan().all()
    with pytest.raises(RewardError, match="lacks 'include'"):
        check_metadata("geneval", reward, ["a dog"], [{}])
    refuses(NAME, "could not load 'nobody/detector'.*path of a local copy", model="nobody/detector")


@pytest.mark.weights
@pytest.mark.skipif(not os.environ.get("GENRL_WEIGHTS"), reason="reads published weights; set GENRL_WEIGHTS=1")
def test_published_weights():
    """COCO's classes in COCO's order, and colours that are right on pure colours."""
    reward = Geneval(device="cpu")
    assert reward.names == COCO
    for colour, channels in (("red", (1, 0, 0)), ("green", (0, 1, 0)), ("blue", (0, 0, 1))):
        image = torch.tensor(channels, dtype=torch.float32).view(3, 1, 1).expand(3, 64, 64)
        assert reward.colours(image, [Detection("bowl", 1.0, (0, 0, 64, 64))]) == [colour]
