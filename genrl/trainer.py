"""``fit``: the one training loop. It runs any ``Algorithm`` and knows none by name.

A round: draw prompts, sample, score, turn scores into signals, let every due update learn, move the slow roles, write down.
Several processes share a round's prompts, whole groups each, and average their gradients before a step (docs/decisions.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.markup import escape
from torch import Tensor

from genrl import checkpoint, config, seeds
from genrl.algorithm import REAL, Algorithm, Feedback, View
from genrl.chain import Chain
from genrl.data import prompts_of_round
from genrl.evaluation.judging import Protocol, judge_images
from genrl.evaluation.sheets import PROMPTS, spread
from genrl.learner import Learner
from genrl.policy import FlowPolicy
from genrl.pool import Scoring
from genrl.preview import Previews
from genrl.recorder import Recorder, describe, progress_bar
from genrl.rollout import RECORDS, decode, rollout
from genrl.rules import valid_groups
from genrl.task import Task
from genrl.types import Batch, Trajectory


def fit(
    algorithm: Algorithm,
    policy: FlowPolicy,
    task: Task,
    *,
    run: config.Run,
    chunk: int,
    evaluate: config.Evaluation,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Train until ``run.rounds``, from the newest checkpoint if there is one; returns the run's folder.

    Args:
        chunk: samples per forward pass of sampling.
        settings: whatever must be the same for a run to be continued, flat.
        notes: file name -> text, written into the run's folder once it is certain that the run starts.

    Raises:
        ValueError: the algorithm does not fit the policy.
        TrainingError: a loss or gradient is not finite.
        RewardError: a reward broke its contract.
        CheckpointError: the folder holds a run under another config.
    """
    algorithm.validate(policy)
    loop = Loop(algorithm, policy, task, run, chunk, evaluate, settings, accelerator)
    loop.restore(notes or {})
    with progress_bar(accelerator.is_main_process) as progress:
        bar = progress.add_task("judging the base model", total=run.rounds, completed=loop.round)
        if loop.round == 0:
            loop.judge(full=True)
        progress.update(bar, description="sampling")
        while loop.round < run.rounds:
            metrics = loop.play()
            for words in loop.raised:
                progress.console.print(f"[bold]round {loop.round}:[/bold] {escape(words)}")
            told = describe(metrics, loop.judged)
            progress.update(bar, completed=loop.round, description=told)
            if accelerator.is_main_process and not progress.console.is_terminal:  # a file shows no bar
                progress.console.print(f"round {loop.round}/{run.rounds}  {escape(told)}", soft_wrap=True, highlight=False)
        loop.raised = []
        loop.judge(full=True)
        for words in loop.raised:
            progress.console.print(f"[bold]at the end:[/bold] {escape(words)}")
    for view in algorithm.views:
        loop.judge(full=True, view=view)
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
        chunk: int,
        evaluate: config.Evaluation,
        settings: Mapping[str, Any],
        accelerator: Accelerator,
    ):
        self.algorithm, self.policy, self.task = algorithm, policy, task
        self.run, self.chunk, self.evaluation = run, chunk, evaluate
        self.settings, self.accelerator = dict(settings), accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        if algorithm.prompts % self.world:
            raise ValueError(f"{algorithm.prompts} prompts a round do not divide among {self.world} processes; whole groups stay together")
        self.previews = Previews(algorithm, policy, task.rewards, task.mix, self._draw, self._gather, self.world)
        alarms = (*algorithm.alarms, *self.previews.alarms)
        folder, trackers = Path(run.folder) / run.name, accelerator.trackers
        self.recorder = Recorder(folder, accelerator.is_main_process, accelerator.log, task.watch, alarms, trackers)
        mean = (lambda flat: torch.as_tensor(accelerator.reduce(flat, "mean"))) if self.world > 1 else None
        self.learner = Learner(policy, algorithm.updates, run.seed, mean)
        self.round = 0
        self.counters = {"images_seen": 0, "reward_calls": 0, **({"previews": 0} if algorithm.preview else {}), "wall_s": 0.0}
        self.judged: dict[str, float] = {}
        self.raised: list[str] = []

    # -- one round

    def play(self) -> dict[str, float]:
        began = time.perf_counter()
        batch, metrics = self.collect()
        for index, update in enumerate(self.algorithm.updates):
            if diagnose := getattr(update.loss, "diagnose", None):
                # every group has its part; no more than fit into one forward pass
                some = torch.arange(0, len(batch), max(1, len(batch) // self.chunk))
                fresh = self.learner.streamed(batch, self.round, index, -1).index(some)
                metrics |= self._mean(diagnose(self.policy, fresh))
        for index in range(len(self.algorithm.updates)):
            if self.learner.due(index, self.round, metrics):
                metrics |= self._mean(self.learner.learn(index, batch, self.round))
        self.round += 1
        for slow in self.algorithm.slow:
            if slow.due(self.round):
                self.policy.sync(slow.target, slow.source, slow.decay)
        seconds = time.perf_counter() - began
        self.counters["wall_s"] += seconds
        counted = {name: count for name, count in self.counters.items() if name != "wall_s"}
        self.raised = self.recorder.log({"round": self.round, **counted, **metrics}, seconds)
        if self.round % self.evaluation.every_rounds == 0 and self.round < self.run.rounds:
            self.judge(full=False)
        if self.round % self.run.save_every_rounds == 0 or self.round == self.run.rounds:
            self.save()
        return metrics

    def collect(self) -> tuple[Batch, dict[str, float]]:
        """Sample and score this process's groups; signals are made from all groups."""
        algorithm, previews, metrics = self.algorithm, self.previews, {}
        mine, width = range(self.rank, algorithm.prompts, self.world), previews.width
        seen = previews.look(mine)
        samples = previews.keep(seen, mine) if seen else previews.numbers(mine)
        scoring = self.task.rewards.begin() if algorithm.feedback is not None else None
        record = [name for name in RECORDS if name in algorithm.requires]
        trajectory = self._draw(algorithm.chain, samples, width, scoring, "images_seen", record)
        signal = dict(trajectory.recorded)
        for name in sorted(algorithm.requires.intersection(REAL)):
            key = (self.run.seed, seeds.REAL, self.round)
            signal[name] = self.task.real_of(name, key, samples).to(trajectory.x0.device)
        if algorithm.feedback is not None and scoring:
            judged, metrics = self._signals(algorithm.feedback, trajectory, scoring)
            signal |= judged
        if seen:
            metrics |= previews.check(self.round, seen, mine)
        return Batch(trajectory.group, trajectory.sample, trajectory.x0, trajectory.cond, signal, prompts=trajectory.prompts), metrics

    def _draw(
        self, chain: Chain, samples: Sequence[int], width: int, scoring: Scoring | None, counter: str, record: Sequence[str] = ()
    ) -> Trajectory:
        """Draw samples of this round by number, ``width`` numbers to a prompt, and score them meanwhile; every process does as many."""
        algorithm, groups = self.algorithm, [number // width for number in samples]
        chosen = prompts_of_round(len(self.task.train.prompts), algorithm.prompts, self.run.seed, self.round)
        rows = self.task.train.rows([chosen[g] for g in groups])

        def finished(some: slice, x0: Tensor) -> None:
            own = rows.prompts[some]
            if scoring:
                scoring.add(decode(self.policy, x0), [p.text for p in own], [p.metadata for p in own], torch.tensor(groups[some]))

        self.counters[counter] += len(samples) * self.world
        self.counters["reward_calls"] += len(samples) * self.world * len(scoring.pool.rewards if scoring else ())
        return rollout(
            self.policy,
            chain,
            rows.prompts,
            rows.cond,
            role=algorithm.behaviour,
            key=(self.run.seed, seeds.ROLLOUT, self.round),
            samples=samples,
            groups=groups,
            guidance=algorithm.guidance,
            chunk=self.chunk,
            record=record,
            finished=finished,
        )

    def _signals(self, feedback: Feedback, trajectory: Trajectory, scoring: Scoring) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Rewards of this process's samples, made into signals together with everyone's."""
        if self.task.mix is None:
            raise ValueError("the algorithm learns from rewards, and the task has no mix of them")
        scores = scoring.result()
        self.task.rewards.require_valid(scores)
        sample = self._gather(trajectory.sample)
        # in the order of samples, whichever process drew them: sums round alike for any number of processes
        sample, order = sample.sort()
        scores = {name: self._gather(values)[order] for name, values in scores.items()}
        group = self._gather(trajectory.group)[order]
        mixed = self.task.mix(scores, group)
        signal = feedback(torch.where(valid_groups(mixed.total, group), mixed.total, math.nan), group)
        metrics = dict(mixed.metrics)
        for name, values in scores.items():
            metrics |= {f"reward/{name}/mean": float(values.nanmean()), f"reward/{name}/std": float(values[values.isfinite()].std())}
        local = torch.searchsorted(sample, trajectory.sample)
        return {name: value[local].to(trajectory.x0.device) for name, value in signal.items()}, metrics

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

    def judge(self, full: bool, view: View | None = None) -> None:
        """Judge the result, or a view, on held-out prompts: all of them, or the small fixed part."""
        algorithm, held_out = self.algorithm, self.task.held_out
        if algorithm.result is None:
            return
        total = len(held_out.prompts)
        # spread evenly, so that every category is in the small part
        every, some = spread(total, self.evaluation.prompts or total), spread(total, self.evaluation.small_prompts)
        chosen = every if full else some
        shown = view or View(f"round-{self.round:05d}", algorithm.result, algorithm.judged or algorithm.chain, algorithm.guidance)
        images = (shown.images_per_prompt or self.evaluation.images_per_prompt) if full else self.evaluation.small_images
        protocol = Protocol(shown.chain, shown.guidance, self.chunk, self.run.seed, images, self.task.watch.trained)
        mine = dict(list(enumerate(chosen))[self.rank :: self.world])
        kept = full or self.evaluation.pictures == "all"
        # only the main process has trackers, but all know whether there are any
        pictures = self.recorder.pictures(shown.name, kept) if kept or self.accelerator.log_with else None
        rows = judge_images(self.policy, shown.role, held_out.prompts, held_out.cond, mine, self.task.judges, protocol, pictures)
        rows = gather_object(rows) if self.world > 1 else rows
        rows.sort(key=lambda row: row["place"])
        means = self.recorder.judged(shown.name, self.round, self.counters["images_seen"], protocol, rows, pictures)
        # the same prompts at every evaluation
        both = sorted(set(every).intersection(some))
        on_show = {both[i] for i in spread(len(both), PROMPTS)}
        group = view.name if view else "pictures"
        self.recorder.show(group, self.round, [row for row in rows if chosen[row["place"]] in on_show], pictures)
        if view is None:
            self.judged = means
            self.raised += self.recorder.follow(shown.name, means)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        tensors = {f"role/{role}/{name}": t for role in self._kept() for name, t in self.policy.tensors(role).items()}
        tensors |= self.learner.tensors()
        state = {
            "round": self.round,
            "counters": self.counters,
            **self.learner.state(),
            "feedback": self.algorithm.feedback.state() if self.algorithm.feedback else {},
            "mix": self.task.mix.state() if self.task.mix else {},
            "previews": self.previews.state(),
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
            self.learner.load(tensors, state)
            self.round, self.counters, self.judged = state["round"], state["counters"], state["judged"]
            if self.algorithm.feedback:
                self.algorithm.feedback.load_state(state["feedback"])
            if self.task.mix:
                self.task.mix.load_state(state["mix"])
            self.previews.load_state(state["previews"])
        self.accelerator.wait_for_everyone()
        self.recorder.open(self.round, fresh=not self.run.resume, notes=notes)
        self.accelerator.wait_for_everyone()

    def _kept(self) -> list[str]:
        """Roles that change, and so belong in a checkpoint."""
        return list(dict.fromkeys([*self.algorithm.trained, *(slow.target for slow in self.algorithm.slow)]))
