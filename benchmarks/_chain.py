"""Every way to sample with one network, for ``chain.py``: ours, diffusers', a plain loop, and the bare network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from _models import forward, load
from _timing import alternate, medians
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from genrl import seeds
from genrl.chain import OdeChain, SdeChain
from genrl.config import Speed
from genrl.path import start
from genrl.policy import ACTOR, Copies, FlowPolicy
from genrl.precision import Precision
from genrl.rollout import decode, denoise, rollout
from genrl.types import Conditioning, Prompt

PROMPT = "a red circle left of a blue square"


class Case:
    """One network, size, batch and guidance, and every way to sample with it."""

    def __init__(self, name: str, device: torch.device, side: int, batch: int, guidance: float, steps: int, speed: Speed):
        self.device, self.batch, self.guidance, self.steps = device, batch, guidance, steps
        formats = Precision("bf16", "bf16") if device.type == "cuda" else Precision()
        options = {"precision": formats, "height": side, "width": side}
        self.plain_model = load(name, device, **options)
        self.model = load(name, device, **options, speed=speed)
        self.model.network.load_state_dict(self.plain_model.network.state_dict())
        self.policy = FlowPolicy(self.model, Copies(self.model.network, (ACTOR,)))
        self.texts = [PROMPT] * batch
        self.cond = self.model.encode(self.texts).to(device)
        self.dtype = next(self.model.network.parameters()).dtype
        self.ode, self.sde = OdeChain(self.model.sigmas(steps)), SdeChain(self.model.sigmas(steps))
        self.noise = start(seeds.normal((0,), range(batch), self.model.latent_shape, device), 1.0)

    def floor(self, model: Any) -> None:
        x, cond = self.noise, self.cond
        if self.guidance != 1:
            x, cond = torch.cat([x, x]), Conditioning.cat([self.blank(), cond])
        with torch.no_grad():
            for sigma in self.ode.sigmas[:-1]:
                forward(model, x, sigma, cond)

    def blank(self) -> Conditioning:
        empty = self.model.unconditional.to(self.device)
        return Conditioning(empty.embeds.expand(self.batch, -1, -1), empty.pooled.expand(self.batch, -1))

    def ours(self) -> Tensor:
        return denoise(self.policy, self.ode, self.noise, self.cond, role=ACTOR, guidance=self.guidance)

    def ours_sde(self) -> Any:
        order = range(self.batch)
        return rollout(
            self.policy, self.sde, [Prompt(PROMPT)] * self.batch, self.cond, role=ACTOR, key=(0,), samples=order, groups=order,
            guidance=self.guidance, chunk=self.batch, record=("states", "log_probs"),
        )  # fmt: skip

    def ours_pictures(self) -> Tensor:
        # a run has encoded its prompts before its first round
        return decode(self.policy, self.ours(), chunk=self.batch)

    def pipeline(self, pictures: bool = False) -> Any:
        pipe: StableDiffusion3Pipeline = self.plain_model.pipeline
        blank = self.blank()
        given = {
            "prompt_embeds": self.cond.embeds.to(self.dtype),
            "pooled_prompt_embeds": self.cond.pooled.to(self.dtype),
            "negative_prompt_embeds": blank.embeds.to(self.dtype),
            "negative_pooled_prompt_embeds": blank.pooled.to(self.dtype),
        }
        height, width = self.model.size
        return pipe(
            **({"prompt": self.texts, "max_sequence_length": 1} if pictures else given),
            height=height,
            width=width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            latents=self.noise.to(self.dtype),
            output_type="pt" if pictures else "latent",
        ).images  # pyright: ignore

    @torch.no_grad()
    def plain(self) -> Any:
        """The SDE step of Flow-GRPO, as its public code has it: branches concatenated anew, scheduler arithmetic and noise apart."""
        network, x, guided = self.plain_model.network, self.noise.to(self.dtype), self.guidance != 1
        embeds, pooled = self.cond.embeds.to(self.dtype), self.cond.pooled.to(self.dtype)
        if guided:
            blank = self.blank()
            embeds = torch.cat([blank.embeds.to(self.dtype), embeds])
            pooled = torch.cat([blank.pooled.to(self.dtype), pooled])
        states, log_probs, grid = [x], [], self.sde.sigmas
        for sigma, after in itertools.pairwise(grid):
            both = torch.cat([x] * 2) if guided else x
            level = torch.full((len(both),), 1000 * sigma, device=x.device)
            v = network(hidden_states=both, timestep=level, encoder_hidden_states=embeds, pooled_projections=pooled, return_dict=False)[0]
            if guided:
                v_0, v_c = v.chunk(2)
                v = v_0 + self.guidance * (v_c - v_0)
            v, state, dt = v.float(), x.float(), after - sigma
            std = math.sqrt(sigma / (1 - (grid[1] if sigma == 1 else sigma))) * self.sde.eta
            mean = state * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
            spread = std * math.sqrt(-dt)
            new = mean + spread * torch.randn_like(mean)
            density = -((new - mean) ** 2) / (2 * spread**2) - math.log(spread) - math.log(math.sqrt(2 * math.pi))
            log_probs.append(density.mean(dim=tuple(range(1, density.ndim))))
            x = new.to(self.dtype)
            states.append(x)
        return torch.stack(states, 1), torch.stack(log_probs, 1)

    def calls(self) -> dict[str, Callable[[], Any]]:
        found = {
            "floor, eager": lambda: self.floor(self.plain_model),
            "floor": lambda: self.floor(self.model),
            "ours": self.ours,
            "pipeline": self.pipeline,
            "ours (sde)": self.ours_sde,
            "plain (sde)": self.plain,
        }
        if self.plain_model.pipeline.text_encoder is not None:
            found |= {"ours (pictures)": self.ours_pictures, "pipeline (pictures)": lambda: self.pipeline(pictures=True)}
        return found

    def previews(self, runs: int) -> dict[str, float]:
        """Median seconds of previews in float8, of as many steps and of half as many; nothing else fits between them, for the network is
        another one while they run."""
        half = OdeChain(self.model.sigmas(max(1, self.steps // 2)))
        draw = lambda chain: denoise(self.policy, chain, self.noise, self.cond, role=ACTOR, guidance=self.guidance)  # noqa: E731
        with self.model.cheap(self.model.network, fp8=True):  # pyright: ignore[reportAttributeAccessIssue]
            found = alternate({"fp8": lambda: draw(self.ode), "fp8, half the steps": lambda: draw(half)}, self.device, runs)
        return medians(found)

    def agreement(self) -> float:
        """Largest difference of ours from the pipeline's latents, relative to their spread."""
        theirs = self.pipeline().float()
        return ((self.ours() - theirs).abs().max() / theirs.std()).item()
