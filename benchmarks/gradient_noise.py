"""How much of the actor's gradient is signal: what noise levels, clip and noises per sample are worth, before any training.

    python benchmarks/gradient_noise.py

The base of the shapes world draws groups of pictures, the judge scores them, and each minibatch gives one gradient of the loss
that ``trainers/ac_flow.py`` would use. ``share`` is the squared length of the mean gradient (unbiased: the mean of <g_j, g_k>
over minibatches j != k) over the mean squared length of one gradient: how much of a step goes the same way for every minibatch.
The steps that a gain needs, and the random drift that comes along, fall as it rises. Writes
``benchmarks/results/gradient_noise.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch
from accelerate import Accelerator
from acflow_shapes import RESULTS, ROOT, spread

from genrl import config, seeds
from genrl.algorithm import Algorithm, Loss
from genrl.data import load_prompts
from genrl.models.sd3 import SD3
from genrl.policy import ACTOR, FlowPolicy
from genrl.reward import load_reward
from genrl.rollout import decode, rollout
from genrl.threads import fit_threads
from genrl.trainers._launch import load_model, versions
from genrl.trainers.ac_flow import Config, build
from genrl.types import Batch

DEMO = ROOT / "configs" / "ac_flow" / "shapes.yaml"
VARIANTS: dict[str, list[str]] = {
    "levels 0.5 to 0.9": [],
    "four noises per sample": ["--actor.passes=4"],
    "levels 0.4 to 1": ["--sigma.low=0.4", "--sigma.high=1"],
    "levels 0 to 1": ["--sigma.low=0", "--sigma.high=1"],
    "levels 0 to 1, shift 3": ["--sigma.low=0", "--sigma.high=1", "--sigma.shift=3"],
    "levels 0 to 0.5": ["--sigma.low=0", "--sigma.high=0.5"],
    "levels 0.8 to 1": ["--sigma.low=0.8", "--sigma.high=1"],
    "clip 1": ["--actor.clip=1"],
    "clip 0.25": ["--actor.clip=0.25"],
    "error of the velocity": ["--actor.error=velocity"],
}
"""Each changes one thing of the first: the demo with one noise per sample, without its critic, which has learned nothing yet."""
BASE = ["--actor.baseline=group", "--actor.passes=1", "--sigma.low=0.5", "--sigma.high=0.9"]


def draw(algorithm: Algorithm, model: SD3, policy: FlowPolicy, source: str, rounds: int, seed: int) -> Batch:
    """Rounds of scored samples of the base, as one batch."""
    prompts, size = load_prompts(source), algorithm.group_size
    chosen = seeds.permutation((seed, seeds.PROMPTS), len(prompts))[: rounds * algorithm.prompts].tolist()
    cond = model.encode([prompts[i].text for i in chosen])
    groups = [group for group in range(len(chosen)) for _ in range(size)]
    some, key = [prompts[chosen[group]] for group in groups], (seed, seeds.ROLLOUT)
    cond = cond.index(torch.tensor(groups))
    drawn = rollout(policy, algorithm.chain, some, cond, role=ACTOR, key=key, samples=range(len(groups)), groups=groups)
    scores = load_reward("shapes_judge")(decode(policy, drawn.x0), [p.text for p in some], [p.metadata for p in some])
    assert algorithm.feedback is not None
    return Batch(drawn.group, drawn.sample, drawn.x0, drawn.cond, algorithm.feedback(torch.as_tensor(scores).float(), drawn.group))


def signal_share(loss: Loss, policy: FlowPolicy, parts: list[Batch], noises: int, seed: int) -> float:
    """The share defined above; a gradient is the mean over so many noises of each sample."""
    total, squares = torch.zeros(()), 0.0
    for part in parts:
        for parameter in policy.parameters(ACTOR):
            parameter.grad = None
        for number in range(noises):
            (loss(policy, replace(part, stream=(seed, seeds.LOSS, number))).loss / noises).backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters(ACTOR) if p.grad is not None])
        total, squares = total + gradient, squares + float(gradient @ gradient)
    return (float(total @ total) - squares) / (len(parts) - 1) / squares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=8, help="rounds of samples behind each figure")
    args = parser.parse_args()
    fit_threads()
    settings = {name: config.load(Config, ["--config", str(DEMO), *BASE, *options]) for name, options in VARIANTS.items()}
    first = next(iter(settings.values()))
    model, rows = load_model(first.model, torch.device("cpu")), []
    for seed in args.seeds:
        algorithm, policy = build(first, model)
        whole = draw(algorithm, model, policy, first.data.train, args.rounds, seed)
        shares = {}
        for name, one in settings.items():
            parts = [whole.index(some) for some in torch.arange(len(whole)).split(one.actor.minibatch)]
            shares[name] = signal_share(build(one, model)[0].updates[-1].loss, policy, parts, one.actor.passes, seed)
            print(f"seed {seed}  {name:24s} {shares[name]:.4f}", flush=True)
        about = versions(seed, Accelerator(cpu=True)) | {"command": "python benchmarks/gradient_noise.py"}
        rows.append({"seed": seed, "shares": shares, "versions": about})
    figures = {name: spread([row["shares"][name] for row in rows]) | {"options": options} for name, options in VARIANTS.items()}
    content = {"figures": figures, "seeds": args.seeds, "rounds": args.rounds, "rows": rows}
    (RESULTS / "gradient_noise.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
