"""``genrl``: small commands around a run. Training itself is ``accelerate launch -m genrl.trainers.<method>``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from genrl.precision import DTYPES


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
    sub = commands.add_parser("report", help="write a run's report.html again")
    sub.add_argument("run", type=Path)
    sub.set_defaults(call=report)
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
    rewards_commands(commands.add_parser("rewards", help="list, look up, examine and serve rewards"))
    sub = commands.add_parser("config", help="print a trainer's settings with their defaults")
    sub.add_argument("trainer", help="ac_flow, flow_grpo, flash_dmd, dmd2 or latent_reward")
    sub.set_defaults(call=config)
    args = parser.parse_args(arguments)
    try:
        args.call(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


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


def report(args: argparse.Namespace) -> None:
    from genrl.evaluation.report import write_report

    print(write_report(args.run))


def rewards_commands(parser: argparse.ArgumentParser) -> None:
    """``genrl rewards list | info | doctor | serve``."""
    parser.set_defaults(call=rewards_list)
    commands = parser.add_subparsers(metavar="command")
    commands.add_parser("list", help="those known by name (the default); imports none of them").set_defaults(call=rewards_list)
    sub = commands.add_parser("info", help="what a reward says of itself: kind, bounds, weights, licence, options")
    sub.add_argument("reward", help=NAME)
    sub.set_defaults(call=rewards_info)
    sub = commands.add_parser("doctor", help="load a reward and see whether it is what it says; exit code 1 if not")
    sub.add_argument("reward", help=NAME)
    sub.add_argument("--options", type=_json, default={}, help="the reward's options, as JSON")
    sub.add_argument("--size", type=int, default=512, help="side of the pictures it is shown")
    sub.add_argument("--pictures", type=Path, help='pictures of your own: JSON lines with "image", "prompt", and metadata')
    sub.set_defaults(call=rewards_doctor)
    sub = commands.add_parser("serve", help="answer over HTTP, for the reward named http")
    sub.add_argument("reward", help=NAME)
    sub.add_argument("--options", type=_json, default={}, help="the reward's options, as JSON")
    sub.add_argument("--host", default="127.0.0.1", help="other addresses than this machine's own need a token")
    sub.add_argument("--port", type=int, default=8765)
    sub.add_argument("--token-env", default="", help="environment variable that holds the token clients must send")
    sub.add_argument("--max-mb", type=int, default=256, help="largest request")
    sub.set_defaults(call=rewards_serve)


NAME = "a name (see genrl rewards), package.module:Name or file.py:Name"


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('wants an object: {"model": "path"}')
    return found


def rewards_list(args: argparse.Namespace) -> None:
    from genrl.reward import reward_names

    for name, where in sorted(reward_names().items()):
        print(f"{name:20}{where}")


def rewards_info(args: argparse.Namespace) -> None:
    from genrl.reward import describe

    print(describe(args.reward))


def rewards_doctor(args: argparse.Namespace) -> None:
    from genrl.doctor import examine

    findings = examine(args.reward, args.options, args.size, args.pictures)
    for finding in findings:
        print(f"{finding.status:5} {finding.check:18}{finding.words}")
    if any(finding.status == "fail" for finding in findings):
        raise SystemExit(1)


def rewards_serve(args: argparse.Namespace) -> None:
    from genrl.remote.server import serve

    serve(args.reward, args.options, args.host, args.port, args.token_env, args.max_mb)


def config(args: argparse.Namespace) -> None:
    from genrl.config import dump

    print(dump(importlib.import_module(f"genrl.trainers.{args.trainer}").Config()), end="")
