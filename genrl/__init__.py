"""genrl: fine-tune text-to-image generators by reinforcement learning, with any reward.

The public names below are loaded when first used, so ``import genrl`` costs nothing and pulls in no model library.
Training scripts are in ``genrl.trainers``, rewards in ``genrl.rewards``, configurations in ``genrl.configs``.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("genrl-image")
except PackageNotFoundError:  # a source tree that nobody installed
    __version__ = "0+uninstalled"

PUBLIC = {
    "fit": "genrl.trainer",
    "Algorithm": "genrl.algorithm",
    "Update": "genrl.algorithm",
    "Slow": "genrl.algorithm",
    "FlowPolicy": "genrl.policy",
    "OdeChain": "genrl.chain",
    "RewardPool": "genrl.pool",
    "load_reward": "genrl.reward",
    "load_prompts": "genrl.data",
}
"""Public name -> the module that defines it. A name must differ from every module of genrl, or an import would replace it."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'genrl' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
