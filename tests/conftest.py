"""What every test runs under: no network, checked shapes, a healthy torchvision, fixed seeds."""

import os
import random
import sys
from collections.abc import Iterator

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # cores of its own, before anything counts them: processes whose threads wait for each other on the same cores take many times as long
    cores = sorted(os.sched_getaffinity(0))
    if mine := cores[int(worker.removeprefix("gw")) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]:
        os.sched_setaffinity(0, mine)

if not os.environ.get("GENRL_WEIGHTS"):  # tests of published weights are asked for, and need the hub
    os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported; all others use only what ships with the package

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: kernels are tested on the CPU, interpreted

from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes in signatures are executed here and cost nothing in training. Must come before the first import of these modules.
install_import_hook(
    [
        "genrl.path",
        "genrl.chain",
        "genrl.feedback",
        "genrl.mix",
        "genrl.rules",
        "genrl.preference",
        "genrl.critic",
        "genrl.rollout",
        "genrl.losses",
    ],
    "beartype.beartype",
)

# Shared machines are slow at times, and a failure must repeat: no deadline, the same examples in every run.
settings.register_profile("genrl", deadline=None, derandomize=True)
settings.load_profile("genrl")


def mend_torchvision() -> object:
    """Make a torchvision importable whose C++ library does not match torch (a CUDA wheel beside a CPU torch).

    Its Python code registers fake kernels for two operators without checking that the library loaded, and every package
    that imports torchvision (transformers, diffusers, open_clip, lpips) falls over that. If the two schemas exist, everything but
    ``nms`` and image decoding works, and no test needs those. Does nothing if torchvision is healthy or absent.
    """
    try:
        import torchvision
    except ImportError:
        return None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return library


_library = mend_torchvision()  # the schemas live as long as this reference


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Every test starts from the same global seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
