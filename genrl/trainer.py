"""``fit``: the one training loop. It runs any ``Algorithm`` and knows none by name.

A round: draw prompts, sample, score, turn scores into signals, let every due update learn, move the slow roles, write down.
Several processes share a round's prompts, whole groups each; one all-reduce per step averages gradients (docs/decisions.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from genrl import checkpoint, config, seeds
from genrl.algorithm import Algorithm, Update
from genrl.data import PromptSet, prompts_of_round
from genrl.evaluation.judging import Protocol, judge_images
from genrl.policy import FlowPolicy
from genrl.recorder import Recorder, describe, progress_bar
from genrl.reward import RewardPool, weighted_sum
from genrl.rollout import decode, rollout
from genrl.types import Batch


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says where it broke and what to try."""


@dataclass(frozen=True)
class Task:
    """What is learned: prompts to train on, prompts to judge on, rewards with weights, and what judges."""

    train: PromptSet
    held_out: PromptSet
    rewards: RewardPool
    weights: Mapping[str, float]
    judges: RewardPool


def fit(
    algorithm: Algorithm,
    policy: FlowPolicy,
    task: Task,
    *,
    run: config.Run,
    sampling: config.Sampling,
    evaluate: config.Evaluation,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Train until ``run.rounds``, from the newest checkpoint if there is one; returns the run's folder.

    Args:
        settings: whatever must be the same for a run to be continued, flat.
        notes: file name -> text, written into the run's folder once it is certain that the run starts.

    Raises:
        ValueError: the algorithm does not fit the policy.
        TrainingError: a loss or gradient is not finite.
        RewardError: a reward broke its contract.
        CheckpointError: the folder holds a run under another config.
    """
    algorithm.validate(policy)
    loop = Loop(algorithm, policy, task, run, sampling, evaluate, settings, accelerator)
    loop.restore(notes or {})
    if loop.round == 0:
        loop.judge(full=True)
    with progress_bar(accelerator.is_main_process) as progress:
        bar = progress.add_task("sampling", total=run.rounds, completed=loop.round)
        while loop.round < run.rounds:
            metrics = loop.play()
            progress.update(bar, completed=loop.round, description=describe(metrics, loop.judged))
    loop.judge(full=True)
    accelerator.end_training()
    return loop.recorder.folder


class Loop:
    """The state of a run between rounds, and what happens in one."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: FlowPolicy,
        task: Task,
        run: config.Run,
        sampling: config.Sampling,
        evaluate: config.Evaluation,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
    ):
        self.algorithm, self.policy, self.task = algorithm, policy, task
        self.run, self.sampling, self.evaluation = run, sampling, evaluate
        self.settings, self.accelerator = dict(settings), accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if algorithm.prompts % self.world:
            raise ValueError(f"{algorithm.prompts} prompts a round do not divide among {self.world} processes; whole groups stay together")
        self.recorder = Recorder(Path(run.folder) / run.name, accelerator.is_main_process, accelerator.log)
        self.optimizers = [
            torch.optim.AdamW(policy.parameters(u.role), lr=u.lr, betas=u.betas, weight_decay=u.weight_decay) for u in algorithm.updates
        ]
        self.round = 0
        self.counters = {"images_seen": 0, "reward_calls": 0, "wall_s": 0.0}
        self.steps = [0] * len(algorithm.updates)
        self.opened = [False] * len(algorithm.updates)
        self.judged: dict[str, float] = {}

    # -- one round

    def play(self) -> dict[str, float]:
        began = time.perf_counter()
        batch, metrics = self.collect()
        for index, update in enumerate(self.algorithm.updates):
            if diagnose := getattr(update.loss, "diagnose", None):
                # every group has its part; no more than fit into one forward pass
                some = torch.arange(0, len(batch), max(1, len(batch) // self.sampling.chunk))
                fresh = self._streamed(batch, index, -1).index(some)
                metrics |= self._mean(diagnose(self.policy, fresh))
        for index, update in enumerate(self.algorithm.updates):
            self.opened[index] = self.opened[index] or update.start.open(self.round, metrics)
            if self.opened[index]:
                metrics |= self.learn(index, update, batch)
        self.round += 1
        for slow in self.algorithm.slow:
            if self.round % slow.every_rounds == 0:
                self.policy.sync(slow.target, slow.source, slow.decay)
        seconds = time.perf_counter() - began
        self.counters["wall_s"] += seconds
        self.recorder.log({"round": self.round, **{k: self.counters[k] for k in ("images_seen", "reward_calls")}, **metrics}, seconds)
        if self.round % self.evaluation.every_rounds == 0 and self.round < self.run.rounds:
            self.judge(full=False)
        if self.round % self.run.save_every_rounds == 0 or self.round == self.run.rounds:
            self.save()
        return metrics

    def collect(self) -> tuple[Batch, dict[str, float]]:
        """Sample and score this process's groups; signals are made from all groups."""
        algorithm, size = self.algorithm, self.algorithm.group_size
        chosen = prompts_of_round(len(self.task.train.prompts), algorithm.prompts, self.run.seed, self.round)
        mine = range(self.rank, algorithm.prompts, self.world)
        groups = [g for g in mine for _ in range(size)]
        rows = self.task.train.rows([chosen[g] for g in groups])
        trajectory = rollout(
            self.policy,
            algorithm.chain,
            rows.prompts,
            rows.cond,
            role=algorithm.behaviour,
            key=(self.run.seed, seeds.ROLLOUT, self.round),
            samples=[g * size + k for g in mine for k in range(size)],
            groups=groups,
            guidance=algorithm.guidance,
            chunk=self.sampling.chunk,
        )
        images = decode(self.policy, trajectory.x0)
        scores = self.task.rewards.score(images, [p.text for p in rows.prompts], [p.metadata for p in rows.prompts])
        sample = self._gather(trajectory.sample)
        # in the order of samples, whichever process drew them: sums round alike for any number of processes
        sample, order = sample.sort()
        scores = {name: self._gather(values)[order] for name, values in scores.items()}
        group = self._gather(trajectory.group)[order]
        signal = algorithm.feedback(weighted_sum(scores, self.task.weights), group)
        self.counters["images_seen"] += len(sample)
        self.counters["reward_calls"] += len(sample) * len(scores)
        metrics = {}
        for name, values in scores.items():
            metrics |= {f"reward/{name}/mean": float(values.nanmean()), f"reward/{name}/std": float(values[values.isfinite()].std())}
        local = torch.searchsorted(sample, trajectory.sample)
        signal = {name: value[local].to(trajectory.x0.device) for name, value in signal.items()}
        return Batch(trajectory.group, trajectory.sample, trajectory.x0, trajectory.cond, signal), metrics

    def learn(self, index: int, update: Update, batch: Batch) -> dict[str, float]:
        """All passes of one update over the round's samples."""
        sums: dict[str, list[Tensor]] = {}
        for number in range(update.passes):
            # a group stays together: losses compare its members
            shuffled = seeds.permutation_by_group((self.run.seed, seeds.ORDER, self.round, index, number), batch.group)
            parts = shuffled.split(update.minibatch)
            for first in range(0, len(parts), update.accumulate):
                self._step(index, update, self._streamed(batch, index, number), parts[first : first + update.accumulate], sums)
        return self._mean({name: torch.stack(values).mean().item() for name, values in sums.items()})

    def _step(self, index: int, update: Update, batch: Batch, parts: Sequence[Tensor], sums: dict[str, list[Tensor]]) -> None:
        optimizer, parameters = self.optimizers[index], self.policy.parameters(update.role)
        optimizer.zero_grad()
        total = sum(len(part) for part in parts)
        for part in parts:
            output = update.loss(self.policy, batch.index(part))
            (output.loss * (len(part) / total)).backward()
            for name, value in (("loss/" + update.role, output.loss.detach()), *output.metrics.items()):
                sums.setdefault(name, []).append(value)
        self._average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, update.clip)
        if not math.isfinite(norm):
            raise TrainingError(
                f"round {self.round}: the gradient of {update.role!r} is not finite (loss {output.loss.item():.3g}); nothing was "
                f"updated. Try a smaller lr (now {update.lr:g}), fp32 precision, or look at the reward's scale"
            )
        self.steps[index] += 1
        for group in optimizer.param_groups:
            group["lr"] = update.lr_at(self.steps[index], self.round)
        optimizer.step()
        sums.setdefault(f"grad_norm/{update.role}", []).append(norm.detach())

    def _average_gradients(self, parameters: Sequence[Tensor]) -> None:
        if self.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.as_tensor(self.accelerator.reduce(torch.cat([g.flatten() for g in grads]), "mean"))
        for parameter, part in zip(parameters, flat.split([g.numel() for g in grads]), strict=True):
            parameter.grad = part.view_as(parameter)

    def _streamed(self, batch: Batch, update: int, number: int) -> Batch:
        stream = (self.run.seed, seeds.LOSS, self.round, update, number)
        return Batch(batch.group, batch.sample, batch.x0, batch.cond, batch.signal, stream)

    def _gather(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.gather(values.to(self.accelerator.device))).cpu() if self.world > 1 else values.cpu()

    def _mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics averaged over processes."""
        if self.world == 1:
            return dict(metrics)
        every = gather_object([dict(metrics)])
        names = dict.fromkeys(name for one in every for name in one)
        return {name: sum(one[name] for one in every if name in one) / sum(name in one for one in every) for name in names}

    # -- judging and keeping

    def judge(self, full: bool) -> None:
        """Judge the result on held-out prompts: all of them with pictures, or the small fixed part."""
        held_out, judges = self.task.held_out, self.task.judges
        total = len(held_out.prompts)
        count = (self.evaluation.prompts or total) if full else self.evaluation.small_prompts
        # spread evenly, so that every category is in the small part
        chosen = sorted({round(i * (total - 1) / max(count - 1, 1)) for i in range(min(count, total))})
        protocol = Protocol(
            chain=self.algorithm.chain,
            guidance=self.algorithm.guidance,
            chunk=self.sampling.chunk,
            seed=self.run.seed,
            images_per_prompt=self.evaluation.images_per_prompt if full else 1,
        )
        mine = dict(list(enumerate(chosen))[self.rank :: self.world])
        pictures = self.recorder.pictures(self.round) if full else None
        role = self.algorithm.result
        rows = judge_images(self.policy, role, held_out.prompts, held_out.cond, mine, judges, protocol, pictures)
        rows = gather_object(rows) if self.world > 1 else rows
        rows.sort(key=lambda row: row["place"])
        self.judged = self.recorder.judged(self.round, self.counters["images_seen"], protocol, rows, pictures)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        tensors = {f"role/{role}/{name}": t for role in self._kept() for name, t in self.policy.tensors(role).items()}
        for index, optimizer in enumerate(self.optimizers):
            tensors |= checkpoint.pack_optimizer(f"optimizer/{index}", optimizer)
        state = {
            "round": self.round,
            "counters": self.counters,
            "steps": self.steps,
            "opened": self.opened,
            "feedback": self.algorithm.feedback.state(),
            "settings": self.settings,
            "judged": self.judged,
        }
        if self.accelerator.is_main_process:
            checkpoint.save(self.recorder.folder / "checkpoints", self.round, tensors, state, self.run.keep)
        self.accelerator.wait_for_everyone()

    def restore(self, notes: Mapping[str, str]) -> None:
        """Continue from the newest checkpoint, or open a fresh folder."""
        found = checkpoint.latest(self.recorder.folder / "checkpoints") if self.run.resume else None
        if found:
            tensors, state = checkpoint.load(found)
            checkpoint.check_same_config(state["settings"], self.settings, found)
            with torch.no_grad():
                for role in self._kept():
                    for name, tensor in self.policy.tensors(role).items():
                        tensor.copy_(tensors[f"role/{role}/{name}"])
            for index, optimizer in enumerate(self.optimizers):
                checkpoint.unpack_optimizer(f"optimizer/{index}", optimizer, tensors)
            self.round, self.counters, self.judged = state["round"], state["counters"], state["judged"]
            self.steps, self.opened = state["steps"], state["opened"]
            self.algorithm.feedback.load_state(state["feedback"])
        self.accelerator.wait_for_everyone()
        self.recorder.open(self.round, fresh=not self.run.resume, notes=notes)
        self.accelerator.wait_for_everyone()

    def _kept(self) -> list[str]:
        """Roles that change, and so belong in a checkpoint."""
        return list(dict.fromkeys([*self.algorithm.trained, *(slow.target for slow in self.algorithm.slow)]))
