"""Each kernel alone: bytes per second against a copy measured beside it, time against plain torch, error against double precision.

    python benchmarks/kernels.py                       # needs a CUDA device
    python benchmarks/kernels.py --device cpu --tiny   # interpreted (TRITON_INTERPRET=1): errors alone, the harness itself

Bytes are those that must move: each input once, each output once. Shapes are those of SD3.5-medium at 512 pixels, with so many samples
that a kernel takes longer than it takes Python to ask for it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, keep, verdict, write_table
from _timing import copy_bandwidth, milliseconds, versions
from torch import Tensor

from genrl.chain import SdeChain
from genrl.kernels import chain, matching, modulation, noise, using
from genrl.kernels.dispatch import Form

NAME = "kernels"
MUST_HOLD = {
    "chain": (0.85, "step", "step, guided"),
    "matching": (0.85, "renoise", "weighted matching + W2", "implicit, guided", "endpoint errors", "DM surrogate"),
    "modulation": (0.8, "norm + modulate", "gate + residual", "gate + norm + modulate"),
}
GRID = (1.0, 0.9, 0.75, 0.5, 0.0)


@dataclass(frozen=True)
class Case:
    """A call: ``fn(*inputs)`` in any format of the inputs, and the bytes it must move. With ``backward``, its gradients are timed and
    compared instead; with ``learns``, the call is timed while the first input wants a gradient, which is written in the same pass.
    """

    group: str
    name: str
    fn: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    moved: int
    backward: bool = False
    learns: bool = False


def size(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


def chain_cases(device: torch.device, rows: int, latent: Sequence[int], dtype: torch.dtype) -> list[Case]:
    x, after = (torch.randn(rows, *latent, device=device) for _ in range(2))
    v, both = (torch.randn(n * rows, *latent, device=device).to(dtype) for n in (1, 2))
    seed = torch.randint(2**62, (rows,), device=device)
    law = SdeChain(GRID).law(1)
    step = lambda x, v, g: chain.step(x, v, law, guidance=g, seed=seed)[0]  # noqa: E731
    density = lambda x, v, after, g: chain.log_prob(x, v, after, law, guidance=g)  # noqa: E731
    return [
        Case("chain", "noise", lambda x: noise.normal(seed, x.shape[1:]), (x,), size(x)),
        Case("chain", "step", lambda x, v: step(x, v, 1.0), (x, v), size(x, x, v)),
        Case("chain", "step, guided", lambda x, v: step(x, v, 4.5), (x, both), size(x, x, both)),
        Case("chain", "log-probability, guided", lambda x, v, a: density(x, v, a, 4.5), (x, both, after), size(x, both, after)),
        Case("chain", "its backward", lambda x, v, a: density(x, v, a, 4.5), (x, both, after), size(x, both, after, both), backward=True),
    ]


def matching_cases(device: torch.device, rows: int, latent: Sequence[int], dtype: torch.dtype) -> list[Case]:
    x, u, ref = (torch.randn(rows, *latent, device=device) for _ in range(3))
    v, old, both = (torch.randn(n * rows, *latent, device=device).to(dtype) for n in (1, 1, 2))
    seed, sigma, share = torch.randint(2**62, (rows,), device=device), torch.rand(rows, device=device), torch.rand(rows, device=device)
    plus = lambda p: matching.Square(p, 0.5, -1.0, 0.5)  # noqa: E731
    minus = lambda p: matching.Square(1 - p, -0.5, -1.0, 1.5)  # noqa: E731

    def exp(v: Tensor, u: Tensor, ref: Tensor, p: Tensor) -> Tensor:
        return matching.matching(v, u, [matching.Square(p)], ref=ref, beta=0.1)

    def implicit(v: Tensor, u: Tensor, old: Tensor, ref: Tensor, p: Tensor, s: Tensor | None = None) -> Tensor:
        return matching.matching(v, u, [plus(p), minus(p)], old=old, ref=ref, beta=0.1, guidance=1.0 if len(v) == len(u) else 4.5, sigma=s)

    surrogate = lambda x, fake, teacher: matching.surrogate(x, fake, teacher)[1]  # noqa: E731
    fields = size(u, ref)
    return [
        Case("matching", "renoise", lambda x, s: matching.renoise(x, seed, s), (x, sigma), size(x, x, x)),
        Case("matching", "weighted matching + W2", exp, (v, u, ref, share), size(v, v) + fields, learns=True),
        Case("matching", "implicit, guided", implicit, (both, u, old, ref, share), size(both, both, old) + fields, learns=True),
        Case("matching", "endpoint errors", implicit, (v, u, old, ref, share, sigma), size(v, u, old, v, u, old, ref, v), learns=True),
        Case("matching", "DM surrogate", surrogate, (x, u, ref), size(x, ref, x, u, ref, x)),
    ]


def modulation_cases(device: torch.device, rows: int, tokens: int, width: int, dtype: torch.dtype) -> list[Case]:
    x, h = (torch.randn(rows, tokens, width, device=device).to(dtype) for _ in range(2))
    scale, shift, gate = (0.5 * torch.randn(rows, width, device=device).to(dtype) for _ in range(3))
    q = torch.randn(rows, width // 64, tokens, 64, device=device).to(dtype)
    wide = torch.randn(rows, tokens, 4 * width, device=device).to(dtype)
    weight, bias = (torch.randn(n, device=device).to(dtype) for n in (64, 4 * width))
    both = modulation.gate_residual_norm_modulate
    return [
        Case("modulation", "norm + modulate", modulation.layer_norm_modulate, (x, scale, shift), size(x, x)),
        Case("modulation", "its backward", modulation.layer_norm_modulate, (x, scale, shift), size(x, x, x), backward=True),
        Case("modulation", "gate + residual", modulation.gate_residual, (x, h, gate), size(x, h, x)),
        Case("modulation", "its backward", modulation.gate_residual, (x, h, gate), size(x, h, h, x), backward=True),
        Case("modulation", "gate + norm + modulate", both, (x, h, gate, scale, shift), size(x, h, x, x)),
        Case("modulation", "q/k RMS norm", modulation.rms_norm, (q, weight), size(q, q)),
        Case("modulation", "bias + GELU", modulation.gelu_tanh_bias, (wide, bias), size(wide, wide)),
        Case("modulation", "its backward", modulation.gelu_tanh_bias, (wide, bias), size(wide, wide, wide), backward=True),
    ]


def outputs(case: Case, inputs: Sequence[Tensor], upstream: list[Tensor] | None = None) -> list[Tensor]:
    """What the call answers, or the gradients of its inputs for given gradients of its answers."""
    if not case.backward:
        found = case.fn(*inputs)
        return list(found) if isinstance(found, tuple) else [found]
    leaves = [t.detach().requires_grad_(True) for t in inputs]
    found = case.fn(*leaves)
    found = [found] if isinstance(found, Tensor) else list(found)
    gradients = torch.autograd.grad(found, leaves, [u.to(f) for u, f in zip(upstream or [], found, strict=True)], allow_unused=True)
    return [g for g in gradients if g is not None]


def error(case: Case) -> float:
    """Largest error of what the call answers, in norm and relative to the reference in double precision."""
    with torch.no_grad():
        found = case.fn(*case.inputs)
    upstream = [torch.randn_like(t.float()) for t in ([found] if isinstance(found, Tensor) else found)]
    with using("triton"):
        mine = outputs(case, case.inputs, upstream)
    with using("reference"):
        exact = outputs(case, [t.double() for t in case.inputs], upstream)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(mine, exact, strict=True))


def timed(case: Case, form: Form, device: torch.device) -> float:
    """Milliseconds of the call, or of its backward pass alone."""
    with using(form):
        if not case.backward:
            first = case.inputs[0].detach().requires_grad_(case.learns)
            with torch.set_grad_enabled(case.learns):
                return milliseconds(lambda: case.fn(first, *case.inputs[1:]), device)
        leaves = [t.detach().requires_grad_(True) for t in case.inputs]
        found = case.fn(*leaves)
        upstream = torch.randn_like(found)
        return milliseconds(lambda: torch.autograd.grad(found, leaves, upstream, retain_graph=True, allow_unused=True), device)


def measure(case: Case, device: torch.device, bandwidth: float | None) -> dict[str, Any]:
    """A row of the result file; on a CPU the interpreter's time means nothing and is not taken."""
    row: dict[str, Any] = {"group": case.group, "kernel": case.name, "bytes": case.moved, "error": error(case)}
    if bandwidth:
        ours, plain = timed(case, "triton", device), timed(case, "reference", device)
        row |= {"ms": ours, "plain_ms": plain, "of_copy": case.moved / (ours / 1e3) / bandwidth, "faster_than_plain": plain / ours}
    return row | {"copy_bytes_per_s": bandwidth, "kind": device.type, "versions": versions(device)}


def table(content: dict[str, Any]) -> str:
    """The table of docs/results.md; nobody's guess where there was no GPU."""
    rows = [row for row in content["rows"] if row["kind"] == "cuda"]
    if not rows:
        return "GPU: not measured."
    lines = [f"{rows[0]['versions']['device']}, a copy moves {rows[0]['copy_bytes_per_s'] / 1e12:.2f} TB/s:", ""]
    lines += ["| kernel | of the copy's bandwidth | plain torch | error |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['kernel']} | {row['of_copy']:.0%} | {row['faster_than_plain']:.1f} x | {row['error']:.0e} |")
    lines.append("")
    for group, (least, *names) in MUST_HOLD.items():
        checks = [(row["kernel"], row["of_copy"], row["of_copy"] >= least) for row in rows if row["kernel"] in names]
        lines.append(verdict(f"the kernels of `genrl.kernels.{group}` move at least {least:.0%} of what a copy moves", checks))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), torch.bfloat16
    torch.manual_seed(0)
    latent, (rows, tokens, width) = ((4, 4, 4), (2, 5, 64)) if args.tiny else ((16, 64, 64), (64, 1357, 1536))
    count = 2 if args.tiny else 1024
    cases = chain_cases(device, count, latent, dtype) + matching_cases(device, count, latent, dtype)
    cases += modulation_cases(device, rows, tokens, width, dtype)
    bandwidth = copy_bandwidth(device, 2**30) if device.type == "cuda" else None
    found = []
    for case in cases:
        found.append(measure(case, device, bandwidth))
        row = found[-1]
        print(f"{row['group']:11}{row['kernel']:26} {row.get('of_copy', 0):6.1%} of a copy, error {row['error']:.1e}", flush=True)
    if bandwidth:
        keep(args.out, device.type, found)
        write_table(NAME, table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
