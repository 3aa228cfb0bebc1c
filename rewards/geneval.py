"""GenEval (arXiv 2310.11513): are the objects there that the prompt names, in number, colour and place?"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genrl.pixels import best_device, shortest_side, to_pil
from genrl.reward import About, RewardError
from genrl.rewards.clip_score import HubClip, complete, loading

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
RELATIONS = ("left of", "right of", "above", "below")
GREY = 0x99 / 255  # what surrounds an object while its colour is named
_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,cat,dog,"
    "horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,"
    "orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,"
    "computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)
COCO = tuple(_NAMES.split(","))
"""COCO's 80 classes in their order, by GenEval's names."""


@dataclass(frozen=True)
class Detection:
    """One object: ``box`` is (left, top, right, bottom) in pixels, the last two exclusive; ``mask`` bool ``[H, W]``."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor | None = None


Found = Mapping[str, Sequence[Detection]]
Colours = Callable[[Sequence[Detection]], list[str]]


class Geneval:
    """1 where all that the metadata asks for is in the picture, else 0; with ``graded`` the share of it, 0 to 1.

    Metadata as in GenEval's file: ``include`` (a list of ``{class, count, color, position: [relation, index of an earlier entry]}``),
    ``exclude`` (``{class, count}``: fewer than count) and ``tag`` (``counting`` takes the higher threshold). Without include and
    exclude the score is NaN.

    ``graded`` averages one term for each count (``1 - |wanted - found| / wanted``, at least 0), colour (the same over the objects that
    have it), position (1 or 0) and exclusion (1 or 0); where the count is wrong, colour and position earn nothing. So Flow-GRPO
    (arXiv 2505.05470) trains, but there a violated relation still earns half of its credit, surplus may make a term negative, and
    exclusions are not read.

    Published with MMDetection's Mask2Former Swin-S; the default here has the same architecture and other weights, at 384 x 384, so
    numbers must be called "GenEval with another detector". Colours by CLIP ViT-L/14, as published.

    Args:
        model: hub id or folder of a Mask2Former of transformers for instances, with its image processor.
        clip: hub id or folder of a CLIP of transformers.
        graded: partial credit.
        threshold: objects score above it.
        counting_threshold: the same for prompts with the tag ``counting``.
        max_objects: per class, those of the highest score.
        max_overlap: overlap (IoU of boxes) at which the weaker of two objects of a class is dropped; 1 drops none.
        device: ``auto`` is this process's GPU, or the CPU.
    """

    about = About(
        metadata=("include",),
        bounds=(0.0, 1.0),
        weights=("facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"),
        license="code MIT; the detector's hub card says 'other', its original repository MIT; CLIP MIT",
        source="arXiv 2310.11513",
    )

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-small-coco-instance",
        clip: str = "openai/clip-vit-large-patch14",
        graded: bool = False,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        max_overlap: float = 1.0,
        device: str = "auto",
    ):
        self.graded, self.threshold, self.counting_threshold = graded, threshold, counting_threshold
        self.max_objects, self.max_overlap = max_objects, max_overlap
        self.device = best_device(device)
        with loading(model):
            from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

            self.processor: Any = AutoImageProcessor.from_pretrained(model)
            loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
            network, report = loaded
            complete(report["missing_keys"])
        self.network: Any = network.to(self.device).eval().requires_grad_(False)
        self.names = class_names(network.config.id2label)
        self.clip = HubClip(clip, device=device)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        for wanted in metadata:
            check(wanted, self.names)
        images = images.to(self.device)
        scores = []
        for image, seen, wanted in zip(images, self.detect(images), metadata, strict=True):
            threshold = self.counting_threshold if wanted.get("tag") == "counting" else self.threshold
            found = keep(seen, threshold, self.max_objects, self.max_overlap)
            scores.append(evaluate(found, wanted, lambda objects, image=image: self.colours(image, objects), self.graded))
        return scores

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """What the detector sees in each picture above the lower threshold."""
        pixels = self.processor(images=to_pil(images), return_tensors="pt").to(self.device)
        output = self.network(**pixels)
        size, least = images.shape[-2:], min(self.threshold, self.counting_threshold)
        heads = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        return [instances(classes, masks, size, least, self.names) for classes, masks in heads]

    def colours(self, image: Tensor, objects: Sequence[Detection]) -> list[str]:
        """The colour of each object (of one class) by CLIP, zero-shot over the ten."""
        crops = torch.cat([shortest_side(cut_out(image, thing), self.clip.size) for thing in objects])
        texts = [template.format(colour=colour, name=objects[0].name) for colour in COLOURS for template in TEMPLATES]
        mean = self.clip.texts(texts).view(len(COLOURS), len(TEMPLATES), -1).mean(1)
        nearest = (self.clip.pictures(crops) @ F.normalize(mean, dim=-1).T).argmax(-1)
        return [COLOURS[index] for index in nearest.tolist()]


def class_names(labels: Mapping[int, str]) -> tuple[str, ...]:
    """A detector's classes in order, COCO's by GenEval's names: published label lists spell some of them differently."""
    names = tuple(labels[index] for index in range(len(labels)))
    is_coco = len(names) == len(COCO) and (names[0], names[-1]) == (COCO[0], COCO[-1])
    return COCO if is_coco else names


def instances(classes: Tensor, masks: Tensor, size: Sequence[int], threshold: float, names: Sequence[str]) -> list[Detection]:
    """Objects from Mask2Former's heads for one picture: class logits ``[Q, C + 1]`` and mask logits ``[Q, h, w]``.

    As transformers' ``post_process_instance_segmentation``: of all pairs of query and class the Q most probable; the score is the
    probability times the mean probability inside the mask at 384 x 384; the mask is brought to ``size`` by nearest neighbours.
    """
    kinds = classes.shape[-1] - 1
    score, pair = classes.softmax(-1)[:, :-1].flatten().topk(len(classes))
    likely = score > threshold  # the mask's probability can only lower it
    score, pair = score[likely], pair[likely]
    if not len(score):
        return []
    logits = F.interpolate(masks[pair // kinds][None].float(), (384, 384), mode="bilinear", align_corners=False)[0]
    inside = (logits > 0).float()
    score = score * (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    placed = F.interpolate(inside[None], tuple(size), mode="nearest")[0].bool()
    found = []
    for value, kind, mask in zip(score.tolist(), (pair % kinds).tolist(), placed, strict=True):
        if value > threshold and mask.any():
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            box = (columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1)
            found.append(Detection(names[kind], value, box, mask))
    return found


def cut_out(image: Tensor, thing: Detection) -> Tensor:
    """The object's box ``[1, 3, h, w]`` of the image ``[3, H, W]``, its surroundings painted grey."""
    left, top, right, bottom = (round(edge) for edge in thing.box)
    if thing.mask is not None:
        image = torch.where(thing.mask.to(image.device), image, GREY)
    return image[None, :, top:bottom, left:right]


def keep(seen: Sequence[Detection], threshold: float, most: int = 16, max_overlap: float = 1.0) -> dict[str, list[Detection]]:
    """Objects above the threshold by class, the surest first, at most ``most`` of each, without those that overlap a surer one."""
    by_class: dict[str, list[Detection]] = {}
    for thing in sorted(seen, key=lambda thing: -thing.score):
        if thing.score > threshold:
            by_class.setdefault(thing.name, []).append(thing)
    kept = {}
    for name, things in by_class.items():
        kept[name] = []
        for thing in things[:most]:
            if max_overlap >= 1 or all(overlap(thing, surer) < max_overlap for surer in kept[name]):
                kept[name].append(thing)
    return kept


def overlap(a: Detection, b: Detection) -> float:
    """Intersection over union of the boxes, whose edges count as pixels, as published."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    both = area(max(a.box[0], b.box[0]), max(a.box[1], b.box[1]), min(a.box[2], b.box[2]), min(a.box[3], b.box[3]))
    return both / (area(*a.box) + area(*b.box) - both)


def relations(a: Detection, b: Detection, slack: float = 0.1) -> set[str]:
    """Where ``a`` lies as seen from ``b``: left of, right of, above, below; none, one or two of them.

    The offset of the centres, less ``slack`` times the summed sizes in each direction, over the length of the whole offset: a relation
    holds where that exceeds .5.
    """
    shift, size = [], []
    for low, high in ((0, 2), (1, 3)):
        shift.append((a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2)
        size.append(a.box[high] - a.box[low] + b.box[high] - b.box[low])
    rest = [math.copysign(max(abs(d) - slack * s, 0.0), d) for d, s in zip(shift, size, strict=True)]
    if max(map(abs, rest)) < 1e-3:
        return set()
    x, y = (r / math.hypot(*shift) for r in rest)
    return {name for name, part in (("left of", -x), ("right of", x), ("above", -y), ("below", y)) if part > 0.5}


def evaluate(found: Found, wanted: Mapping[str, Any], colours: Colours, graded: bool = False) -> float:
    """The score of what was found; NaN where nothing is wanted. Found objects come with the surest first.

    Strict, only the ``count`` surest objects of a class are looked at, and more than wanted are no mistake unless excluded. A relation
    must hold between every pair of the two entries' objects, and earns nothing where the earlier entry failed.
    """
    terms: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for entry in wanted.get("include") or ():
        things = found.get(entry["class"], ())
        things = things if graded else things[: entry.get("count", 1)]
        earned = _entry(things, entry, groups, colours)
        groups.append(things if min(earned) == 1 else None)
        terms += earned
    for entry in wanted.get("exclude") or ():
        terms.append(float(len(found.get(entry["class"], ())) < entry.get("count", 1)))
    if not terms:
        return math.nan
    return sum(terms) / len(terms) if graded else float(min(terms) == 1)


def _entry(things: Sequence[Detection], entry: Mapping[str, Any], groups: Sequence[Any], colours: Colours) -> list[float]:
    """What an entry of ``include`` earns: for its count, its colour and its position, as far as it names them."""
    count, colour, position = entry.get("count", 1), entry.get("color"), entry.get("position")
    earned = [_near(len(things), count)]
    asked = (colour is not None) + (position is not None)
    if earned[0] < 1:
        return earned + [0.0] * asked
    if colour is not None:
        earned.append(_near(colours(things).count(colour), count))
    if position is not None:
        relation, index = position
        others = groups[index] if min(earned) == 1 else None
        holds = others is not None and all(relation in relations(thing, other) for thing in things for other in others)
        earned.append(float(holds))
    return earned


def _near(found: int, wanted: int) -> float:
    return max(1 - abs(wanted - found) / wanted, 0.0)


def check(wanted: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise RewardError for metadata that no picture could satisfy, or every one."""
    for index, entry in enumerate([*(wanted.get("include") or ()), *(wanted.get("exclude") or ())]):
        name, colour, position = (entry.get(key) for key in ("class", "color", "position"))
        count = entry.get("count", 1)
        if name not in names:
            near = [known for known in names if str(name) in known.split()] or difflib.get_close_matches(str(name), names, n=3)
            raise RewardError(f"the detector knows no class {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
        if not isinstance(count, int) or count < 1:
            raise RewardError(f"count of {name!r} must be a whole number from 1 on; got {count!r}")
        if colour is not None and colour not in COLOURS:
            raise RewardError(f"color of {name!r} must be one of {', '.join(COLOURS)}; got {colour!r}")
        if position is None:
            continue
        if len(position) != 2 or position[0] not in RELATIONS or position[1] not in range(index):
            raise RewardError(f"position of {name!r} must be [{' | '.join(RELATIONS)}, index of an earlier entry]; got {position!r}")
