"""``genrl rewards list | info | doctor | serve``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

NAME = "a name (see genrl rewards), package.module:Name or file.py:Name"


def add_commands(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(call=list_all)
    commands = parser.add_subparsers(metavar="command")
    commands.add_parser("list", help="those known by name (the default); imports none of them").set_defaults(call=list_all)
    sub = commands.add_parser("info", help="what a reward says of itself: kind, bounds, weights, licence, options")
    sub.add_argument("reward", help=NAME)
    sub.set_defaults(call=info)
    sub = commands.add_parser("doctor", help="load a reward and see whether it is what it says; exit code 1 if not")
    sub.add_argument("reward", help=NAME)
    sub.add_argument("--options", type=json_object, default={}, help="the reward's options, as JSON")
    sub.add_argument("--size", type=int, default=512, help="side of the pictures it is shown")
    sub.add_argument("--pictures", type=Path, help='pictures of your own: JSON lines with "image", "prompt", and metadata')
    sub.set_defaults(call=doctor)
    sub = commands.add_parser("serve", help="answer over HTTP, for the reward named http")
    sub.add_argument("reward", help=NAME)
    sub.add_argument("--options", type=json_object, default={}, help="the reward's options, as JSON")
    sub.add_argument("--host", default="127.0.0.1", help="other addresses than this machine's own need a token")
    sub.add_argument("--port", type=int, default=8765)
    sub.add_argument("--token-env", default="", help="environment variable that holds the token clients must send")
    sub.add_argument("--max-mb", type=int, default=256, help="largest request")
    sub.set_defaults(call=serve_reward)


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError('wants an object: {"model": "path"}')
    return found


def list_all(args: argparse.Namespace) -> None:
    from genrl.reward import reward_names

    for name, where in sorted(reward_names().items()):
        print(f"{name:20}{where}")


def info(args: argparse.Namespace) -> None:
    from genrl.reward import describe

    print(describe(args.reward))


def doctor(args: argparse.Namespace) -> None:
    from genrl.doctor import examine

    findings = examine(args.reward, args.options, args.size, args.pictures)
    for finding in findings:
        print(f"{finding.status:5} {finding.check:18}{finding.words}")
    if any(finding.status == "fail" for finding in findings):
        raise SystemExit(1)


def serve_reward(args: argparse.Namespace) -> None:
    from genrl.remote.server import serve

    serve(args.reward, args.options, args.host, args.port, args.token_env, args.max_mb)
