"""What the table of distillation calls network passes is what the losses ask for."""

import importlib
from pathlib import Path

import pytest
import torch
import yaml

from genrl import config
from genrl.data import load_prompts
from genrl.learner import Learner
from genrl.policy import ACTOR
from genrl.rollout import rollout
from genrl.trainers import dmd2, flash_dmd
from genrl.trainers._launch import load_model
from genrl.types import Batch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cost():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("_cost")


class Stub(torch.nn.Module):
    """A latent reward model that knows nothing."""

    def forward(self, features, sigma, pooled):
        return features.flatten(1).mean(1)


@pytest.fixture(scope="module")
def model():
    loaded = load_model(config.Model(tune="full", t5=False, max_sequence_length=1), torch.device("cpu"))
    return loaded, load_prompts("shapes/train")[:6], loaded.encode([prompt.text for prompt in load_prompts("shapes/train")[:6]])


@pytest.mark.parametrize(
    ("trainer", "changes"),
    [
        ("dmd2", {"fake_per_student": 2}),
        ("dmd2", {"fake_per_student": 5, "fake.passes": 2, "gan.student_weight": 0, "teacher.guidance": 1}),
        ("flash_dmd", {}),
        ("flash_dmd", {"gan.images": 2}),
        ("flash_dmd", {"rl.start_round": 3, "rl.passes": 2, "actor.minibatch": 2, "actor.accumulate": 2}),
        ("flash_dmd", {"rl.start_round": 2, "rl.mode": "sequential", "gan.weight": 0, "rl.candidates": 3}),
        ("flash_dmd", {"rl.start_round": 1, "rl.mode": "sequential", "rl.rewards": '[{"name": "shapes_proxy"}]', "rl.passes": 1}),
    ],
)
def test_the_count_of_network_passes_is_what_the_losses_ask_for(cost, model, monkeypatch, trainer, changes):
    generator, prompts, cond = model
    blocks = len(generator.network.transformer_blocks)
    assert pytest.approx((blocks // 2 + 1) / blocks) == cost.FEATURES
    module = {"dmd2": dmd2, "flash_dmd": flash_dmd}[trainer]
    monkeypatch.setattr(flash_dmd, "load_value", lambda path: Stub())
    options = {"run.rounds": 6, "data.prompts": len(prompts), "sampling.steps": 3, "gan.width": 8, **changes}
    arguments = ["--config", str(ROOT / "configs" / trainer / "shapes.yaml"), *(f"--{key}={value}" for key, value in options.items())]
    settings = config.load(module.Config, arguments)
    algorithm, policy = module.build(settings, generator)
    passes, answer, features = [0.0], policy.answer, policy.features

    def counted(x, sigma, cond, role, guidance):
        passes[0] += len(x) * (1 if guidance == 1 else 2)
        return answer(x, sigma, cond, role, guidance)

    def looked(x, sigma, cond, role):
        passes[0] += cost.FEATURES * len(x)
        return features(x, sigma, cond, role)

    monkeypatch.setattr(policy, "answer", counted)
    monkeypatch.setattr(policy, "features", looked)
    learner, steps, samples = Learner(policy, algorithm.updates, 0), 0, 0
    own = {"role": ACTOR, "key": (0,), "samples": range(len(prompts)), "groups": range(len(prompts))}
    drawn = rollout(policy, algorithm.chain, prompts, cond, **own, record=("states", "predictions"))
    drawing, spent = passes[0], 0.0
    signal = drawn.recorded | {"real_latents": drawn.x0, "real_images": policy.decode(drawn.x0)}
    batch = Batch(drawn.group, drawn.sample, drawn.x0, drawn.cond, signal, (0,), drawn.prompts)
    for index, update in enumerate(algorithm.updates):
        passes[0] = 0.0
        with torch.no_grad():
            update.loss(policy, batch)
        turns = sum(learner.due(index, round_, {}) for round_ in range(settings.run.rounds)) * update.passes
        spent += turns * passes[0]
        if update.role == ACTOR:
            steps += turns * -(-len(prompts) // (update.minibatch * update.accumulate))
            samples += turns * len(prompts)
    found = cost.cost(trainer, yaml.safe_load(config.dump(settings)))
    assert found.evaluations == pytest.approx(settings.run.rounds * drawing + spent)
    assert (found.updates, found.samples) == (steps, samples)
