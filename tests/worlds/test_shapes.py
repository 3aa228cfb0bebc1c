"""The shapes world: what the judge sees, what the prompts promise, what the shipped models can do."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from scipy import ndimage, stats
from transformers import AutoTokenizer

from genrl.data import load_prompts
from genrl.worlds.shapes import ASSETS, PIPELINE, PIPELINE_SDXL, proxies
from genrl.worlds.shapes.captions import CATEGORIES, caption, pair_caption, prompt_sets, targets, true_target, wanted
from genrl.worlds.shapes.judge import PARTS, judge, look
from genrl.worlds.shapes.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    build_scene,
    pair_scene,
    random_scene,
    relation_holds,
    render,
)

RNG = np.random.default_rng(11)
SCENES = [random_scene(RNG) for _ in range(300)]
IMAGES = np.stack([render(scene) for scene in SCENES])
TRUTH = [true_target(scene.things) for scene in SCENES]


def mean_score(images, truth=TRUTH):
    return float(np.mean([v.score for v in judge(images, truth)]))


def test_the_world_is_as_rich_as_promised():
    assert len(COLOURS) >= 6 and len(SHAPES) >= 5
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}
    assert IMAGES.shape[1:] == (3, 64, 64) and IMAGES.min() >= 0 and IMAGES.max() <= 1


def test_the_judge_knows_its_own_renderings():
    assert mean_score(IMAGES) >= 0.99


def test_the_judge_accepts_reconstructions():
    vae = AutoencoderKL.from_pretrained(PIPELINE / "vae")
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(IMAGES) * 2 - 1).latent_dist.mode()
        images = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).numpy()
    assert mean_score(images) >= 0.97


def test_the_judge_rejects_other_captions():
    order = np.random.default_rng(0).permutation(len(SCENES))
    assert mean_score(IMAGES, [TRUTH[i] for i in order]) <= 0.35


def test_blur_noise_and_extra_things_lower_the_score():
    clean = mean_score(IMAGES)
    blurred = [mean_score(ndimage.gaussian_filter(IMAGES, (0, 0, s, s))) for s in (1.5, 2.0, 3.0)]
    assert clean - 0.03 > blurred[0] > blurred[1] > blurred[2]
    noise = np.random.default_rng(0).normal(size=IMAGES.shape)
    noisy = [mean_score(np.clip(IMAGES + s * noise, 0, 1).astype(np.float32)) for s in (0.03, 0.06, 0.1)]
    assert clean - 0.03 > noisy[0] > noisy[1] > noisy[2]
    ones = [build_scene(RNG, [("circle", "red", "small")]) for _ in range(20)]
    twos = [build_scene(RNG, [("circle", "red", "small"), ("ring", "blue", "small")]) for _ in range(20)]
    want = [{"objects": [wanted("circle", "red")], "relation": None}] * 20
    assert mean_score(np.stack([render(s) for s in ones]), want) > 0.95
    assert mean_score(np.stack([render(s) for s in twos]), want) < 0.4


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_are_seen(relation):
    left, right = Thing("circle", "red", 16, 32, 7, COLOURS["red"]), Thing("square", "blue", 48, 33, 7, COLOURS["blue"])
    up, down = Thing("circle", "red", 31, 15, 7, COLOURS["red"]), Thing("square", "blue", 32, 48, 7, COLOURS["blue"])
    want = [{"objects": [wanted("circle", "red"), wanted("square", "blue")], "relation": relation}]
    scores = {
        "left of": judge(render(Scene((left, right)))[None], want)[0].score,
        "above": judge(render(Scene((up, down)))[None], want)[0].score,
    }
    for true, score in scores.items():
        assert (score > 0.95) == (true == relation)
    assert relation_holds(relation, (10, 10), (30, 30)) == (relation in ("left of", "above"))


def test_binding_counts_and_sizes_are_seen():
    pair = np.stack([render(build_scene(RNG, [("circle", "red", "small"), ("square", "blue", "small")]))])
    right = {"objects": [wanted("circle", "red"), wanted("square", "blue")], "relation": None}
    swapped = {"objects": [wanted("circle", "blue"), wanted("square", "red")], "relation": None}
    large = {"objects": [wanted("circle", "red", "large"), wanted("square", "blue")], "relation": None}
    scores = [judge(pair, [t])[0].score for t in (right, large, swapped)]
    assert scores[0] > 0.95 > scores[1] > 0.6 > 0.4 > scores[2]
    three = np.stack([render(build_scene(RNG, [("cross", "green", "small")] * 3))])
    by_count = [judge(three, [{"objects": [wanted("cross", "green", None, n)], "relation": None}])[0].score for n in (1, 2, 3, 4)]
    assert by_count[2] > 0.95 and max(by_count[0], by_count[1], by_count[3]) < 0.55


def test_everything_found_is_reported():
    (found, drawing), *_ = look(IMAGES[:1])
    assert drawing > 0.95 and len(found) == len(SCENES[0].things)
    for thing in SCENES[0].things:
        nearest = min(found, key=lambda f: np.hypot(f.centre[0] - thing.x, f.centre[1] - thing.y))
        assert (nearest.shape, nearest.colour, nearest.size) == (thing.shape, thing.colour, thing.size)
        assert abs(nearest.centre[0] - thing.x) < 1 and abs(nearest.radius - thing.radius) < 1.01
    verdict = judge(IMAGES[:1], TRUTH[:1])[0]
    assert set(verdict.parts) == set(PARTS) and verdict.score == pytest.approx(np.prod(list(verdict.parts.values())))


def test_an_empty_picture_and_a_wrong_size():
    assert judge(np.full((1, 3, 64, 64), 0.9), TRUTH[:1])[0].score == 0
    with pytest.raises(ValueError, match="64"):
        judge(np.zeros((1, 3, 32, 32)), TRUTH[:1])


def test_prompt_sets():
    train, held_out = load_prompts("shapes/train"), load_prompts("shapes/held_out")
    assert len({p.text for p in train}) >= 2000 and len({p.text for p in held_out}) >= 300
    assert not {p.text for p in train} & {p.text for p in held_out}
    for prompts in (train, held_out):
        assert set(Counter(p.category for p in prompts)) == set(CATEGORIES)

    def keys(prompts):
        return {json.dumps([p.metadata["objects"], p.metadata["relation"]]) for p in prompts if p.category != "single"}

    assert not keys(train) & keys(held_out), "beyond single things, no held-out target is trained on"
    shipped = [json.loads(line) for line in (ASSETS / "prompts" / "train.jsonl").read_text().splitlines()]
    assert shipped == prompt_sets()["train"], "the shipped file is what the code makes"


def test_every_target_can_be_drawn_and_scores_full():
    rng = np.random.default_rng(5)
    for category in CATEGORIES:
        for target in rng.choice(np.asarray(targets(category), object), 12):
            specs = []
            for thing in target["objects"]:
                size = thing["size"] or ("small" if thing["count"] > 1 else "large")
                specs += [(thing["shape"], thing["colour"] or "red", size)] * thing["count"]
            scenes = (build_scene(rng, specs) for _ in range(200))
            fits = (
                s for s in scenes if not target["relation"] or relation_holds(target["relation"], *[(t.x, t.y) for t in s.things], margin=6)
            )
            assert judge(render(next(fits))[None], [target])[0].score > 0.9, target


def test_careful_captions_are_true_and_careless_ones_leave_out():
    rng = np.random.default_rng(0)
    pair = build_scene(rng, [("circle", "red", "small"), ("square", "blue", "small")])
    careful, careless = ([caption(pair, rng, c) for _ in range(400)] for c in (0.0, 1.0))
    assert all(("circle" in c) and ("square" in c) for c in careful)
    alone = sum(("circle" in c) != ("square" in c) for c in careless)
    assert 80 < alone < 160, "a thing is left out of about 30 %"
    first, second = pair.things
    wrong = [c for c in careful if any(r in c for r in RELATIONS) and not _true(c, first, second)]
    assert not wrong
    told = [c for c in careless if any(r in c for r in RELATIONS)]
    assert 0.35 < sum(not _true(c, first, second) for c in told) / len(told) < 0.55


def _true(text, first, second):
    relation = next(r for r in RELATIONS if r in text)
    a, b = (first, second) if text.index(first.shape) < text.index(second.shape) else (second, first)
    return relation_holds(relation, (a.x, a.y), (b.x, b.y))


def test_captions_of_pairs_tell_the_relation_and_the_order():
    rng = np.random.default_rng(3)
    scenes = [pair_scene(rng) for _ in range(400)]
    assert all(a.shape != b.shape and a.colour != b.colour for a, b in (scene.things for scene in scenes))

    def told(ordered, careless):
        """For each caption that tells a relation between coloured things: the word, and whether it is true."""
        found = []
        for scene in scenes:
            text = pair_caption(scene, rng, ordered, careless)
            word = next((r for r in RELATIONS if f" {r} " in text), None)
            first = next((t for t in scene.things if t.shape in text.split(f" {word} ")[0]), None)
            if word and first:
                second = next(t for t in scene.things if t is not first)
                found.append((word, relation_holds(word, (first.x, first.y), (second.x, second.y))))
        return found

    early, late, careless = told(True, 0.0), told(False, 0.0), told(False, 1.0)
    assert {word for word, _ in early} == {"left of", "above"} and {word for word, _ in late} == set(RELATIONS)
    assert all(true for _, true in early + late) and 0.6 < len(late) / len(scenes) < 0.9
    assert 0.4 < np.mean([true for _, true in careless]) < 0.7


@pytest.fixture(scope="module")
def base_pictures():
    """Held-out prompts, what the shipped pipeline draws for them in ten steps by plain diffusers, and the judge's scores."""
    prompts = load_prompts("shapes/held_out")
    pipeline = StableDiffusion3Pipeline.from_pretrained(PIPELINE)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [p.text for p in prompts],
        num_inference_steps=10,
        guidance_scale=1.0,
        max_sequence_length=1,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return prompts, images, [v.score for v in judge(images.numpy(), [p.metadata for p in prompts])]


def test_the_base_draws_and_leaves_room(base_pictures):
    assert 0.45 < np.mean(base_pictures[2]) < 0.65


@pytest.mark.parametrize("member", range(proxies.MEMBERS))
def test_proxies_are_useful_and_imperfect(base_pictures, member):
    prompts, images, scores = base_pictures
    with torch.no_grad():
        similarity = proxies.load_proxy(member).similarity(images, [p.text for p in prompts])
    assert 0.5 < stats.spearmanr(similarity.numpy(), scores).statistic < 0.9


def test_a_proxy_that_was_not_trained_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(proxies, "ASSETS", tmp_path)
    proxies.load_proxy.cache_clear()
    with pytest.raises(FileNotFoundError, match="--stages proxies"):
        proxies.load_proxy(0)


def test_no_prompt_is_too_long_for_the_silent_t5():
    # diffusers would list every prompt of a batch in a warning, though that encoder hears nothing
    tokenizer = AutoTokenizer.from_pretrained(PIPELINE / "tokenizer_3")
    assert tokenizer(["a red circle left of a blue square", ""]).input_ids == [[1], [1]]


def test_what_ships_is_small():
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    sdxl = sum(size for path, size in sizes.items() if PIPELINE_SDXL in path.parents)
    assert sum(sizes.values()) - sdxl <= 12e6 and sdxl <= 8e6
    assert not [path for path in ASSETS.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json", ".jsonl")]
