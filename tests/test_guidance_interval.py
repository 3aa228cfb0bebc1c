"""Guidance between two noise levels: in training, in evaluations and in views, and from the settings that name it."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from gaussian_world import gaussian_policy

from genrl import config
from genrl.algorithm import Algorithm, Update, View
from genrl.chain import Guidance, OdeChain
from genrl.data import PromptSet
from genrl.evaluation.watch import Watch
from genrl.feedback import ShapedReward
from genrl.losses.weighted_matching import WeightedMatching
from genrl.mix import Mix
from genrl.policy import ACTOR, OLD, REF
from genrl.pool import RewardPool
from genrl.task import Task
from genrl.trainer import Loop
from genrl.types import Conditioning, Prompt

CHAIN = OdeChain((1.0, 0.7, 0.5, 0.3, 0.0))


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))


def loop_of(folder, guidance, seen):
    policy = gaussian_policy({ACTOR: (0.0, 0.8), OLD: (0.0, 0.8), REF: (0.0, 0.8)})
    answer = policy.model.velocity

    def velocity(network, x, sigma, cond):
        seen.append((round(sigma[0].item(), 2), len(x)))
        return answer(network, x, sigma, cond)

    policy.model.velocity = velocity
    prompts = PromptSet([Prompt(f"prompt {i}") for i in range(2)], Conditioning(torch.zeros(2, 1, 1), torch.zeros(2, 1)))
    pool = RewardPool({"brightness": brightness})
    task = Task(prompts, prompts, pool, Mix({"brightness": config.Term()}, config.Mix()), pool, Watch((), ()))
    algorithm = Algorithm(
        CHAIN,
        OLD,
        ShapedReward(),
        (Update(ACTOR, WeightedMatching("implicit", baseline="group", beta=0.0), lr=0.01),),
        prompts=2,
        group_size=2,
        guidance=guidance,
        views=(View("narrow", REF, CHAIN, Guidance(3.0, 0.5, 0.5)),),
    )
    run = config.Run(name="run", folder=str(folder), tracker="none", device="cpu")
    evaluation = config.Evaluation(small_prompts=2, small_images=2, images_per_prompt=2)
    loop = Loop(algorithm, policy, task, run, 4, evaluation, {}, Accelerator(cpu=True))
    loop.restore({})
    return loop


def test_only_steps_inside_are_guided_wherever_samples_are_drawn(tmp_path):
    """A guided step asks the network for twice as many rows."""
    seen = []
    loop = loop_of(tmp_path, Guidance(3.0, 0.3, 0.6), seen)
    inside = [(1.0, 4), (0.7, 4), (0.5, 8), (0.3, 8)]
    loop.collect()
    assert seen == inside
    seen.clear()
    loop.judge(full=False)
    assert seen == inside
    seen.clear()
    loop.judge(full=True, view=loop.algorithm.views[0])
    assert seen == [(1.0, 4), (0.7, 4), (0.5, 8), (0.3, 4)]


def test_settings_name_the_interval():
    from genrl.trainers._launch import guidance_of
    from genrl.trainers.ac_flow import Config

    settings = config.load(Config, ["--sampling.guidance", "4.5", "--sampling.guidance_low", "0.2", "--sampling.guidance_high", "0.8"])
    assert guidance_of(settings.sampling) == Guidance(4.5, 0.2, 0.8)
    assert guidance_of(replace(settings.sampling, guidance_low=0.0, guidance_high=1.0)) == Guidance(4.5)
    for low, high in ((0.8, 0.2), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(config.ConfigError, match="guidance_low"):
            config.Sampling(guidance_low=low, guidance_high=high)


@pytest.mark.parametrize("trainer", ["ac_flow", "latent_reward"])
def test_trainers_draw_with_it(trainer):
    from importlib import import_module
    from types import SimpleNamespace

    module = import_module(f"genrl.trainers.{trainer}")
    settings = config.load(module.Config, ["--model.tune", "full", "--sampling.guidance", "2", "--sampling.guidance_low", "0.4"])
    network = torch.nn.Linear(1, 1)
    model = SimpleNamespace(
        network=network,
        latent_shape=(4, 8, 8),
        feature_width=4,
        pooled_width=4,
        device=torch.device("cpu"),
        sigmas=lambda steps: OdeChain((1.0, 0.5, 0.0)).sigmas,
        precision=settings.model.precision,
    )
    algorithm, _ = module.build(settings, model)
    assert algorithm.guidance == Guidance(2.0, 0.4, 1.0)
