"""``genrl``: small commands around a run. Training itself is ``accelerate launch -m genrl.trainers.<method>``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from genrl.cli import evaluate, rewards, runs
from genrl.cli.rewards import NAME
from genrl.precision import DTYPES

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


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
    sub.add_argument("reward", help=NAME)
    sub.add_argument("images", nargs="+", type=Path)
    sub.add_argument("--prompt", required=True, help="the prompt of all these pictures")
    sub.set_defaults(call=score)
    evaluate.add_command(commands.add_parser("evaluate", help="compare models, or folders of pictures, on the same prompts and seeds"))
    runs.add_commands(commands)
    sub = commands.add_parser("precision-report", help="how far number formats push probability ratios off 1, against their clip range")
    sub.add_argument("model", help='a diffusers folder, a hub id, "shapes" or "shapes_sdxl"')
    sub.add_argument("prompts", nargs="*", default=["a red circle left of a blue square", "two green triangles"])
    sub.add_argument("--steps", type=int, default=10)
    sub.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.5])
    sub.add_argument("--clip", type=float, default=1e-4, help="clip range of the ratio")
    sub.add_argument("--images", type=int, default=4, help="samples per prompt; all of them are one batch")
    sub.add_argument("--compute", choices=list(DTYPES), default="", help="the network's format; by default bf16 on a GPU, fp32 elsewhere")
    sub.add_argument("--size", type=int, default=0, help="pixels; 0 is the model's own")
    sub.set_defaults(call=precision_report)
    rewards.add_commands(commands.add_parser("rewards", help="list, look up, examine and serve rewards"))
    sub = commands.add_parser("config", help="print a trainer's settings with their defaults")
    sub.add_argument("trainer", help="ac_flow, flow_grpo, flash_dmd, dmd2 or latent_reward")
    sub.set_defaults(call=config)
    args = parser.parse_args(arguments)
    try:
        args.call(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def sample(args: argparse.Namespace) -> None:
    from genrl.chain import OdeChain
    from genrl.models import load_generator
    from genrl.pixels import to_pil
    from genrl.policy import ACTOR, Copies, FlowPolicy
    from genrl.rollout import decode, rollout
    from genrl.threads import fit_threads
    from genrl.types import Prompt
    from genrl.worlds.shapes import PIPELINES

    fit_threads()
    embedded = {"t5": False, "max_sequence_length": 1} if args.model in PIPELINES else {}
    model = load_generator(str(PIPELINES.get(args.model, args.model)), **embedded)
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    texts = [text for text in args.prompts for _ in range(args.images)]
    numbers = list(range(len(texts)))
    chain, cond, prompts = OdeChain(model.sigmas(args.steps)), model.encode(texts), [Prompt(text) for text in texts]
    done = rollout(policy, chain, prompts, cond, role=ACTOR, key=(args.seed,), samples=numbers, groups=numbers, guidance=args.guidance)
    args.out.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(to_pil(decode(policy, done.x0))):
        path = args.out / f"{number:05d}.png"
        picture.save(path)
        print(f"{path}  {texts[number]}")


def precision_report(args: argparse.Namespace) -> None:
    import torch

    from genrl.evaluation.precision import report, words
    from genrl.models import load_generator
    from genrl.policy import ACTOR, Copies, FlowPolicy
    from genrl.precision import Precision
    from genrl.worlds.shapes import PIPELINES

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute = args.compute or ("bf16" if device.type == "cuda" else "fp32")
    formats = Precision(weights="fp32" if device.type == "cpu" else compute, compute=compute)
    embedded = {"t5": False, "max_sequence_length": 1} if args.model in PIPELINES else {}
    source = str(PIPELINES.get(args.model, args.model))
    model = load_generator(source, device=device, precision=formats, height=args.size, width=args.size, **embedded)
    policy = FlowPolicy(model, Copies(model.network, (ACTOR,)))
    cond = model.encode([text for text in args.prompts for _ in range(args.images)])
    lines = report(policy, cond, steps=args.steps, guidance=args.guidance, clip=args.clip)
    print(words(lines, formats, args.clip))


def score(args: argparse.Namespace) -> None:
    from PIL import Image

    from genrl.pixels import from_pil
    from genrl.pool import RewardPool
    from genrl.reward import load_reward

    pool = RewardPool({args.reward: load_reward(args.reward)}, min_valid=0.0)
    for path in args.images:
        with Image.open(path) as picture:
            print(f"{pool.score(from_pil([picture]), [args.prompt], [{}])[args.reward].item():.4f}  {path}")
    pool.close()


def config(args: argparse.Namespace) -> None:
    from genrl.config import dump

    print(dump(importlib.import_module(f"genrl.trainers.{args.trainer}").Config()), end="")
