"""A round played on tensors without data: what lives at once, what is kept for the way back, how many operations are done."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from genrl.algorithm import REAL, Algorithm, Update
from genrl.chain import Chain
from genrl.kernels import using
from genrl.planner.ledger import ROUNDED, Kept, Ledger, checkpoint, pretended, unlaunched
from genrl.planner.stages import Part, Rehearsed, Stage
from genrl.policy import Adapters, FlowPolicy
from genrl.rollout import RECORDS, decode, rollout
from genrl.types import Batch, Conditioning, Prompt

STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 2 * 4 / 256}
"""Of an optimiser's two moments, per weight; in 8 bits with a float32 scale for each block of 256."""
SMALL = 4096
"""Weights of a tensor below which its states stay in 32 bits."""
BEFORE, SHARED, STATES, ROUND = "before", "shared base", "optimizer states of ", "a round's "
DECODED = 32
"""Latents that are decoded at a time."""


def rehearse(algorithm: Algorithm, policy: FlowPolicy, *, chunk: int, rounds: int, device: str, world: int = 1) -> Rehearsed:
    """Play a round of one process on meta tensors.

    Args:
        policy: built within ``genrl.models.skeletons()``.
        chunk: samples per forward pass of sampling; rounds: of the run, whose last one is played; world: processes.
        device: ``cuda`` or ``cpu``, what the tensors are taken to be on.
    """
    rows = algorithm.prompts // world * algorithm.group_size
    play = _Rehearsal(algorithm, policy, min(chunk, rows), rows, device)
    with play.running():
        parts = play.parts()
        stages = [play.encoding(parts), *play.sampling()]
        last = rounds - 1
        for index, update in enumerate(algorithm.updates):
            if hasattr(update.loss, "diagnose"):
                stages.append(play.diagnosis(index, update))
            if update.start.round <= last and not (update.until_round and last >= update.until_round):
                stages.append(play.learning(index, update))
    network = policy.model.network
    return Rehearsed(tuple(parts), tuple(stages), sum(p.numel() for p in network.parameters()))


class _Rehearsal:
    def __init__(self, algorithm: Algorithm, policy: FlowPolicy, chunk: int, rows: int, device: str):
        self.algorithm, self.policy = algorithm, policy
        self.chunk, self.rows, self.device = chunk, rows, device
        self.ledger = Ledger(ROUNDED if device == "cuda" else 1)
        self.static: list[Tensor] = []
        self.drawing = False
        self.states = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        for role in self.policy.storage.roles:
            with self.policy.storage.use(role) as lent:
                network = cast(Any, lent)
                if getattr(network, "is_gradient_checkpointing", False):
                    network.enable_gradient_checkpointing(checkpoint(self.device))
        gc.collect()
        gc.freeze()  # collecting before every stage is then quick
        # on CUDA the fused kernels decide what is kept
        with (
            pretended(self.device),
            using("triton" if self.device == "cuda" else "reference"),
            unlaunched(),
            self._answers_once(),
            self.ledger,
        ):
            try:
                yield
            finally:
                gc.unfreeze()

    # -- what stays

    def parts(self) -> list[Part]:
        policy, model, found = self.policy, cast(Any, self.policy.model), []
        away = getattr(policy.storage, "offloaded", ())
        for role in policy.storage.roles:
            own = [*policy.tensors(role).values()]
            if role in away:
                found.append(Part(role, sum(t.nbytes for t in own), "cpu"))
            elif own:
                found.append(Part(role, self._hold(own)))
        for role in policy.storage.roles:
            if role not in away:
                with policy.storage.use(role) as network:
                    rest = self._hold([*network.parameters(), *network.buffers()])
                name = SHARED if isinstance(policy.storage, Adapters) else f"{role}, buffers"
                found += [Part(name, rest)] if rest else []
        for name, network in policy.networks.items():
            inner = getattr(network, "backbone", None)
            tensors = [*network.parameters(), *network.buffers(), *(_tensors(inner) if isinstance(inner, nn.Module) else ())]
            found.append(Part(name, self._hold(tensors)))
        found.append(Part("autoencoder", self._hold(_tensors(model.vae))))
        for update in self.algorithm.updates:
            size = sum(_state(tensor, update.optimizer) for tensor in policy.parameters(*update.learners))
            self.states += size
            found.append(Part(f"{STATES}{update.name}", size))
        self.batch = self._batch(self.rows)
        signals = [signal for name, signal in self.batch.signal.items() if name not in REAL]
        found.append(Part(f"{ROUND}latents and embeddings", self._hold([self.batch.x0, self.batch.cond.embeds, *signals])))
        real = [signal for name, signal in self.batch.signal.items() if name in REAL]
        found += [Part(f"{ROUND}real images", self._hold(real))] if real else []
        encoders = [encoder for name in model.encoders if (encoder := getattr(model.pipeline, name)) is not None]
        return [*found, Part("text encoders", sum(tensor.nbytes for encoder in encoders for tensor in _tensors(encoder)), BEFORE)]

    def _hold(self, tensors: Sequence[Tensor]) -> int:
        """Tensors that stay; the bytes of those that were not counted yet."""
        self.ledger.hold(tensors)
        fresh = {tensor.untyped_storage() for tensor in tensors} - {tensor.untyped_storage() for tensor in self.static}
        self.static += tensors
        return sum(storage.nbytes() for storage in fresh)

    def _batch(self, rows: int) -> Batch:
        return batch_of(self.algorithm, self.policy, rows, torch.device("meta"))

    # -- what is done

    def encoding(self, parts: Sequence[Part]) -> Stage:
        """Prompts are embedded when all networks are there, and nothing that is learned with."""
        there = [part.bytes for part in parts if part.place != "cpu" and not part.name.startswith((STATES, ROUND))]
        return Stage("embedding the prompts", 0, 0, sum(there))

    def sampling(self) -> list[Stage]:
        algorithm, found = self.algorithm, []
        if algorithm.preview:
            candidates = self.rows * algorithm.preview.settings.factor
            found.append(self._drawing("previews", algorithm.preview.chain, candidates, ()))
        record = [name for name in RECORDS if name in algorithm.requires]
        found.append(self._drawing("sampling", algorithm.chain, self.rows, record))
        if algorithm.feedback is not None:
            count = self.rows * (1 + (algorithm.preview.settings.factor if algorithm.preview else 0))
            size = min(DECODED, self.chunk)
            with self._stage() as ledger, torch.no_grad():
                decode(self.policy, self.batch.x0[:size])
            found.append(Stage("decoding", size, count / size, self._peak(), plain=ledger.plain))
        return found

    def _drawing(self, name: str, chain: Chain, rows: int, record: Sequence[str]) -> Stage:
        self.drawing = True
        with self._stage() as ledger:
            rollout(
                self.policy,
                chain,
                [Prompt("")] * self.chunk,
                Conditioning(self.batch.cond.embeds[: self.chunk], self.batch.cond.pooled[: self.chunk]),
                role=self.algorithm.behaviour,
                key=(0, 0, 0),
                samples=range(self.chunk),
                groups=[0] * self.chunk,
                guidance=self.algorithm.guidance,
                chunk=self.chunk,
                record=record,
            )
        self.drawing = False
        return Stage(name, self.chunk, rows / self.chunk, self._peak(), plain=ledger.plain)

    def diagnosis(self, index: int, update: Update) -> Stage:
        rows = len(range(0, self.rows, max(1, self.rows // self.chunk)))
        loss: Any = update.loss
        with self._stage() as ledger:
            loss.diagnose(self.policy, self._batch(rows))
        return Stage(f"{update.name}, on fresh samples", rows, 1, self._peak(), plain=ledger.plain, diagnosed=index)

    def learning(self, index: int, update: Update) -> Stage:
        rows = min(update.minibatch, self.rows)
        minibatches = math.ceil(self.rows / update.minibatch)
        learners = self.policy.parameters(*update.learners)
        with self._stage() as ledger, self.policy.only(*update.learners):
            if min(update.accumulate, minibatches) > 1:
                # the gradients of one minibatch are there when the next is on its way
                for parameter in learners:
                    parameter.grad = torch.empty_like(parameter)
            kept = self._minibatch(update, rows)
            for parameter in learners:
                parameter.grad = None
        return Stage(
            update.name,
            rows,
            update.passes * self.rows / rows,
            self._peak(),
            kept,
            ledger.plain,
            ledger.learning,
            steps=update.passes * math.ceil(minibatches / update.accumulate),
            weights=sum(parameter.numel() for parameter in learners),
            every=update.every_rounds,
            update=index,
        )

    def _minibatch(self, update: Update, rows: int) -> int:
        kept = Kept(self.static)
        with kept.hooks():
            output = update.loss(self.policy, self.batch.index(torch.arange(rows)))
        torch.autograd.backward(output.loss)
        return kept.bytes

    @contextmanager
    def _stage(self) -> Iterator[Ledger]:
        gc.collect()
        with self.ledger.measured():
            yield self.ledger

    def _peak(self) -> int:
        return self.ledger.peak + self.states

    @contextmanager
    def _answers_once(self) -> Iterator[None]:
        """What a role answers without gradient is played once for each size: steps and losses differ in nothing but the numbers."""
        policy, ledger, plain = self.policy, self.ledger, self.policy.answer
        known: dict[tuple, tuple[int, int, tuple[int, ...], torch.dtype]] = {}

        def answer(x: Tensor, sigma: Any, cond: Conditioning, role: str, guidance: float) -> Tensor:
            # a role that waits on the CPU has come already where a whole chain is drawn
            key = (self.drawing, role, guidance != 1.0, x.shape, x.dtype)
            if torch.is_grad_enabled():
                return plain(x, sigma, cond, role, guidance)
            if key not in known:
                peak, done, live = ledger.peak, ledger.plain, ledger.live
                ledger.peak = live
                v = plain(x, sigma, cond, role, guidance)
                known[key] = (ledger.peak - live, ledger.plain - done, tuple(v.shape), v.dtype)
                ledger.peak = max(peak, ledger.peak)
                return v
            extra, operations, shape, dtype = known[key]
            ledger.skip(extra, operations)
            return torch.empty(shape, dtype=dtype, device=x.device)

        policy.answer = answer  # type: ignore[method-assign]
        try:
            yield
        finally:
            del policy.answer


def batch_of(algorithm: Algorithm, policy: FlowPolicy, rows: int, device: torch.device) -> Batch:
    """What the losses read, made of noise: whole groups, on a device."""
    model: Any = policy.model
    shape, steps, storage = policy.model.latent_shape, len(algorithm.chain.sigmas) - 1, policy.precision.dtype("storage")
    made = {
        "states": lambda: torch.randn(rows, steps, *shape, device=device).to(storage),
        "predictions": lambda: torch.randn(rows, steps, *shape, device=device),
        "log_probs": lambda: torch.randn(rows, steps, device=device),
        "real_latents": lambda: torch.randn(rows, *shape, device=device),
        "real_images": lambda: torch.rand(rows, 3, *model.size, device=device),
        "valid": lambda: torch.ones(rows, dtype=torch.bool, device=device),
    }
    names = {*algorithm.requires, *(algorithm.feedback.signals if algorithm.feedback else ())}
    signal = {name: made[name]() if name in made else torch.randn(rows, device=device) for name in sorted(names)}
    cond = model.encode([""] * rows).to(device)
    group = torch.arange(rows) // algorithm.group_size
    x0 = torch.randn(rows, *shape, device=device)
    return Batch(group, torch.arange(rows), x0, cond, signal, (0, 0, 0), (Prompt(""),) * rows)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _state(tensor: Tensor, optimizer: str) -> int:
    eight = optimizer == "adamw8bit" and tensor.numel() >= SMALL
    return round(tensor.numel() * STATE_BYTES["adamw8bit" if eight else "adamw"])
