"""``genrl evaluate``: from arguments to subjects and a protocol."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrl.cli.rewards import json_object
from genrl.precision import DTYPES

if TYPE_CHECKING:
    from genrl.comparison.protocol import Protocol
    from genrl.comparison.subjects import Subject
    from genrl.prompt_sets import Collection

REWARDS = {
    "shapes": ("shapes_judge", "shapes_proxy"),
    "compose": ("geneval", "clip_score"),
    "geneval": ("geneval", "clip_score"),
    "text": ("ocr", "clip_score"),
}
"""What judges a prompt set if nothing else is said; of the other sets ``USUAL``."""
USUAL = ("clip_score", "pick_score", "image_reward", "aesthetic")
FEATURES = {"shapes": ("shapes",)}
USUAL_FEATURES = ("clip", "dinov2", "lpips")

EPILOG = """examples:
  genrl evaluate runs/demo --prompts shapes
  genrl evaluate student=runs/flash "teacher=shapes?steps=28&guidance=1.5" --prompts shapes
  genrl evaluate stabilityai/stable-diffusion-3.5-medium mine=runs/mine --prompts compose --out evaluations/mine
  genrl evaluate mine=outputs/mine theirs=outputs/theirs --prompts prompts.txt --rewards clip_score   # folders of pictures
  genrl evaluate new=runs/new --like evaluations/mine/result.json                             # the same protocol again"""


def add_command(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "models",
        nargs="*",
        help="[label=]source[?steps=4&guidance=1.5]: a diffusers folder, a hub id, shapes, shapes_sdxl, a run's folder, an adapter, or a "
        "folder of pictures",
    )
    parser.add_argument("--base", default="", help="what all are compared with; by default what the first run was made from, or the first")
    parser.add_argument("--prompts", default="", help="a set by name (--list-prompts), or a .txt, .jsonl, .csv or .tsv; by default mini")
    parser.add_argument("--prompt-file", default="", help="the file of a public set that is on this machine")
    parser.add_argument("--limit", type=int, default=0, help="so many prompts, spread over the set")
    parser.add_argument("--images", type=int, help="pictures of each prompt; by default 4, of folders of pictures as many as all have")
    parser.add_argument("--seed", type=int, help="by default 0")
    parser.add_argument("--steps", type=int, nargs="+", default=[], help="for all that name none; several make a curve")
    parser.add_argument("--guidance", type=float, help="for all that name none")
    parser.add_argument("--rewards", nargs="+", help="[label=]name of each reward; by default those that fit the prompt set")
    parser.add_argument("--reward-options", type=json_object, default={}, help='as JSON: {"label": {"option": value}}')
    parser.add_argument("--features", nargs="*", help="clip, clip_336, dinov2, inception, inception_patch, shapes, lpips")
    parser.add_argument("--reference", help="base (by default), none, a folder of real pictures, or of their statistics")
    parser.add_argument("--train-prompts", default="", help="prompts that were trained on, to report those that are in the set as well")
    parser.add_argument("--batch", type=int, default=16, help="pictures per call of a model or reward")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=list(DTYPES), default="", help="by default bf16 on a GPU, fp32 elsewhere")
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder; what it has of the same evaluation is not drawn again"
    )
    parser.add_argument("--like", type=Path, help="a result.json whose protocol is repeated; other arguments change it")
    parser.add_argument("--list-prompts", action="store_true", help="list the prompt sets and end")
    parser.set_defaults(call=run)


def run(args: argparse.Namespace) -> None:
    if args.list_prompts:
        from genrl.prompt_sets import all_sets

        print(*all_sets(), sep="\n")
        return
    import torch

    from genrl.comparison import protocol as protocols
    from genrl.comparison.evaluate import evaluate
    from genrl.comparison.table import words
    from genrl.pixels import best_device
    from genrl.reward import RewardError
    from genrl.threads import fit_threads

    if args.batch < 1:
        raise ValueError(f"--batch {args.batch}: at least one picture goes into a call")
    device = best_device(args.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch sees no GPU here")
    if device == "cpu":
        fit_threads()
    subjects, protocol, earlier = _planned(args)
    dtype = DTYPES[args.dtype or ("fp32" if device == "cpu" else "bf16")]
    assert isinstance(dtype, torch.dtype)
    command = shlex.join(["genrl", *sys.argv[1:]])
    try:
        result = evaluate(subjects, protocol, args.out, batch=args.batch, device=device, dtype=dtype, command=command)
    except RewardError as error:
        if args.rewards or args.like:
            raise
        hint = "nobody named rewards, so those that fit the prompts were taken; some need no weights: --rewards jpeg_size --features"
        raise RewardError(f"{error}\n{hint}") from error
    print("", *words(result), sep="\n")
    if leaked := result["protocol"]["leaked"]:
        print(f"{len(leaked)} of {len(protocol.prompts.prompts)} prompts were trained on, {leaked[0]!r} for one: a gain may be memory")
    if earlier:
        print(*protocols.repeated(earlier, result), sep="\n")
    print(f"page: {args.out / 'evaluation.html'}")


def _planned(args: argparse.Namespace) -> tuple[list[Subject], Protocol, Mapping[str, Any] | None]:
    """Subjects and protocol, from the arguments or from an earlier result and what the arguments change of it."""
    from genrl.comparison import protocol as protocols
    from genrl.comparison.folders import fewest
    from genrl.comparison.subjects import SubjectError, subjects
    from genrl.prompt_sets import prompt_set

    named = subjects(args.models, args.base, args.steps, args.guidance) if args.models else []
    if args.like:
        kept, protocol, earlier = protocols.like(args.like)
        protocol = replace(protocol, prompts=_prompts_like(protocol.prompts, args), rewards=_rewards_like(protocol.rewards, args))
        if not named and (args.base or args.steps or args.guidance is not None):
            raise ValueError("beside --like, --base, --steps and --guidance are of models that are named: name them, too")
        return named or kept, _changed(protocol, args), earlier
    if not named and (args.rewards or args.features):
        raise SubjectError("name what to evaluate before the options: --rewards and --features take every word behind them, models as well")
    if not named:
        raise SubjectError(
            "name what to evaluate: a diffusers folder, a hub id, a run's folder, or a folder of pictures (genrl evaluate --help)"
        )
    name = args.prompts or _own_prompts(named) or "mini"
    collection = prompt_set(name, args.prompt_file or None, args.limit)
    standard = protocols.Protocol(
        collection,
        rewards=_terms(args.rewards or REWARDS.get(name, USUAL), args.reward_options),
        features=FEATURES.get(name, USUAL_FEATURES),
    )
    if all(subject.kind == "pictures" for subject in named) and collection.prompts:
        # at least one, so that a folder which lacks some is told which
        standard = replace(standard, images=max(1, min(fewest(subject, collection.prompts) for subject in named)))
    return named, _changed(standard, args), None


def _prompts_like(earlier: Collection, args: argparse.Namespace) -> Collection:
    """The prompts of an earlier result, or others that are asked for."""
    from genrl.prompt_sets import part, prompt_set

    return prompt_set(args.prompts, args.prompt_file or None, args.limit) if args.prompts or args.prompt_file else part(earlier, args.limit)


def _rewards_like(earlier: Mapping[str, Mapping[str, Any]], args: argparse.Namespace) -> Mapping[str, Mapping[str, Any]]:
    """The rewards of an earlier result, or others that are asked for; what has options there keeps them."""
    if args.reward_options and not args.rewards:
        raise ValueError("beside --like, --reward-options goes with --rewards: name the rewards, too")
    if args.rewards:
        named = _terms(args.rewards, args.reward_options)
        same = {label: earlier[label] for label, term in named.items() if term["name"] == earlier.get(label, {}).get("name")}
        return {label: term if label in args.reward_options else same.get(label, term) for label, term in named.items()}
    # a file may come from anybody, and loading a reward by path runs what it names
    if foreign := [f"{label}={term['name']}" for label, term in earlier.items() if ":" in term["name"]]:
        raise ValueError(f"{args.like} scores with code that is not genrl's: to run it, name all rewards, --rewards {' '.join(foreign)}")
    return earlier


def _own_prompts(named: Sequence[Subject]) -> str:
    """The list of prompts that a folder of pictures brings along."""
    from genrl.data import INDEX

    found = [path for subject in named if subject.kind == "pictures" and (path := Path(subject.source).expanduser() / INDEX).is_file()]
    return str(found[0]) if found else ""


def _changed(protocol: Protocol, args: argparse.Namespace) -> Protocol:
    given = {"images": args.images, "seed": args.seed, "reference": args.reference, "features": args.features}
    return replace(protocol, train=args.train_prompts, **{name: value for name, value in given.items() if value is not None})


def _terms(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Label -> name and options of each reward."""
    terms: dict[str, dict[str, Any]] = {}
    for text in names:
        label, equals, name = text.partition("=")
        name = name if equals else label
        # a reward of a file is called by what it is in the file
        label = label if equals else name.rpartition(":")[2]
        if label in terms:
            raise ValueError(f"two rewards are called {label!r}; write label=name")
        terms[label] = {"name": name, "options": options.get(label, {})}
    if wrong := [label for label, given in options.items() if not isinstance(given, Mapping)]:
        raise ValueError(f'--reward-options of {", ".join(wrong)} are no object: {{"label": {{"option": value}}}}')
    if unknown := sorted(set(options) - set(terms)):
        raise ValueError(f"--reward-options names {', '.join(unknown)}, and the rewards are {', '.join(terms)}")
    return terms
