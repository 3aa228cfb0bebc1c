"""``genrl``: small commands around a run. Training itself is ``accelerate launch -m genrl.trainers.<method>``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; every foreseen failure is one message and exit code 1."""
    parser = argparse.ArgumentParser(prog="genrl", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    sub = commands.add_parser("sample", help="draw pictures with a pipeline folder or hub id")
    sub.add_argument("model", help='a diffusers folder, a hub id, "shapes" or "shapes_sdxl"')
    sub.add_argument("prompts", nargs="+")
    sub.add_argument("--out", type=Path, default=Path("samples"))
    sub.add_argument("--steps", type=int, default=28)
    sub.add_argument("--guidance", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--images", type=int, default=1, help="pictures per prompt")
    sub.set_defaults(call=sample)
    sub = commands.add_parser("score", help="score pictures with a reward")
    sub.add_argument("reward", help="a name (see genrl rewards), package.module:Name or file.py:Name")
    sub.add_argument("images", nargs="+", type=Path)
    sub.add_argument("--prompt", required=True, help="the prompt of all these pictures")
    sub.set_defaults(call=score)
    sub = commands.add_parser("report", help="write a run's report.html again")
    sub.add_argument("run", type=Path)
    sub.set_defaults(call=report)
    sub = commands.add_parser("rewards", help="list the rewards known by name")
    sub.set_defaults(call=rewards)
    sub = commands.add_parser("config", help="print a trainer's settings with their defaults")
    sub.add_argument("trainer", help="ac_flow, flash_dmd, dmd2 or latent_reward")
    sub.set_defaults(call=config)
    args = parser.parse_args(arguments)
    try:
        args.call(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def sample(args: argparse.Namespace) -> None:
    from genrl.chain import OdeChain
    from genrl.evaluation.judging import to_pil
    from genrl.models import load_generator
    from genrl.policy import ACTOR, Copies, FlowPolicy
    from genrl.rollout import decode, rollout
    from genrl.types import Prompt
    from genrl.worlds.shapes import PIPELINES

    embedded = {"t5": False, "max_sequence_length": 1} if args.model in PIPELINES else {}
    model = load_generator(str(PIPELINES.get(args.model, args.model)), **embedded)
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    texts = [text for text in args.prompts for _ in range(args.images)]
    numbers = list(range(len(texts)))
    chain, cond, prompts = OdeChain(model.sigmas(args.steps)), model.encode(texts), [Prompt(text) for text in texts]
    done = rollout(policy, chain, prompts, cond, role=ACTOR, key=(args.seed,), samples=numbers, groups=numbers, guidance=args.guidance)
    args.out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(decode(policy, done.x0)):
        path = args.out / f"{number:05d}.png"
        to_pil(image).save(path)
        print(f"{path}  {texts[number]}")


def score(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from genrl.pool import RewardPool
    from genrl.reward import load_reward

    pool = RewardPool({args.reward: load_reward(args.reward)}, batch=1, min_valid=0.0)
    for path in args.images:
        pixels = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255
        print(f"{pool.score(pixels, [args.prompt], [{}])[args.reward].item():.4f}  {path}")


def report(args: argparse.Namespace) -> None:
    from genrl.evaluation.report import write_report

    print(write_report(args.run))


def rewards(args: argparse.Namespace) -> None:
    from genrl.reward import reward_names

    for name, where in sorted(reward_names().items()):
        print(f"{name:16}{where}")


def config(args: argparse.Namespace) -> None:
    from genrl.config import dump

    print(dump(importlib.import_module(f"genrl.trainers.{args.trainer}").Config()), end="")
