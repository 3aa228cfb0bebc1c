"""A generator in several roles: the actor that is trained, its moving average, the behaviour that draws, the reference that anchors.

Where a role's weights live is decided here and nowhere else: a full copy of the network, a LoRA adapter over one shared
base, or that base with its adapters off. Losses and rollouts say a role's name and see a velocity field.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genrl.path import Sigma
from genrl.types import Conditioning

ACTOR, OLD, REF, AVERAGE = "actor", "old", "ref", "average"


class Generator(Protocol):
    """What a model adapter offers (see ``genrl.models``).

    ``velocity`` evaluates a given network without guidance, float32 in and out; ``decode`` maps latents to images
    ``[B, 3, H, W]`` in [0, 1], differentiably; ``unconditional`` is the conditioning of guidance's other branch.
    """

    @property
    def network(self) -> nn.Module: ...
    @property
    def latent_shape(self) -> tuple[int, ...]: ...
    @property
    def unconditional(self) -> Conditioning: ...

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class Storage(Protocol):
    """Where roles live: ``use`` lends the network that plays a role, ``tensors`` names the weights that are the role's own."""

    @property
    def roles(self) -> tuple[str, ...]: ...

    def use(self, role: str) -> Any: ...
    def tensors(self, role: str) -> dict[str, Tensor]: ...


class Copies:
    """Every role is a full copy of the network; only trained roles ever change."""

    def __init__(self, network: nn.Module, roles: tuple[str, ...], trained: tuple[str, ...] = (ACTOR,)):
        self.roles = roles
        self._networks = {role: network if role == roles[0] else copy.deepcopy(network) for role in roles}
        for role, net in self._networks.items():
            net.requires_grad_(role in trained)
            net.eval()

    @contextmanager
    def use(self, role: str) -> Iterator[nn.Module]:
        yield self._networks[role]

    def tensors(self, role: str) -> dict[str, Tensor]:
        return {**dict(self._networks[role].named_parameters())}


class Adapters:
    """Roles are LoRA adapters over one network; ``ref`` is that network with its adapters off and has no weights of its own.

    Expects a diffusers model; ``lora`` is a ``peft.LoraConfig``. Adapters start equal, as the same random factors.
    """

    def __init__(self, network: Any, roles: tuple[str, ...], lora: Any, trained: tuple[str, ...] = (ACTOR,)):
        self.roles = roles
        self._trained = trained
        self._network = network.requires_grad_(False).eval()
        for role in roles:
            if role != REF:
                network.add_adapter(lora, adapter_name=role)
        self._layers: list[Any] = [module for module in network.modules() if hasattr(module, "lora_A") and hasattr(module, "set_adapter")]
        if not self._layers:
            raise ValueError(f"LoRA found no layer to adapt: none of {lora.target_modules} is in {type(network).__name__}")
        named = [(name, p) for name, p in network.named_parameters() if ".lora_" in name]
        for _, parameter in named:
            # over a bfloat16 base peft makes bfloat16 adapters, whose small steps would round away
            parameter.data = parameter.data.float()
        self._own = {role: {n.replace(f".{role}.", "."): p for n, p in named if f".{role}." in n} for role in roles if role != REF}
        first, *others = self._own.values()
        for own in others:
            for name, tensor in own.items():
                tensor.data.copy_(first[name])
        self._activate(trained[0])

    @contextmanager
    def use(self, role: str) -> Iterator[nn.Module]:
        self._activate(role)
        try:
            yield self._network
        finally:
            # backward (and checkpointed re-computation) must find the trained adapter active
            self._activate(self._trained[0])

    def _activate(self, role: str) -> None:
        for layer in self._layers:
            layer.enable_adapters(role != REF)
            if role != REF:
                layer.set_adapter(role)
        for name, own in self._own.items():
            for tensor in own.values():
                tensor.requires_grad_(name in self._trained)

    def tensors(self, role: str) -> dict[str, Tensor]:
        return self._own.get(role, {})


class FlowPolicy:
    """Velocity fields that share one model and one conditioning, and the side networks (critics) trained along with them."""

    def __init__(self, model: Generator, storage: Storage, networks: Mapping[str, nn.Module] | None = None):
        self.model = model
        self.storage = storage
        self.networks = dict(networks or {})

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.storage.roles, *self.networks)

    def velocity(self, x: Tensor, sigma: Sigma, cond: Conditioning, role: str = ACTOR, guidance: float = 1.0) -> Tensor:
        """Velocity ``[B, ...]`` of a role at ``x [B, ...]``, ``sigma`` scalar or ``[B]``.

        Guidance g combines ``v_0 + g (v_c - v_0)`` with the unconditional ``v_0``; both branches are one forward pass.
        """
        return self.branches(x, sigma, cond, role, guidance)[0]

    def branches(self, x: Tensor, sigma: Sigma, cond: Conditioning, role: str = ACTOR, guidance: float = 1.0) -> tuple[Tensor, Tensor]:
        """The guided velocity and the plain conditional one, from one forward pass; the same tensor when guidance is 1."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        with self.storage.use(role) as network:
            if guidance == 1.0:
                v = self.model.velocity(network, x, levels, cond)
                return v, v
            empty = self.model.unconditional.to(x.device)
            blank = Conditioning(empty.embeds.expand(len(x), -1, -1), empty.pooled.expand(len(x), -1))
            both = self.model.velocity(network, torch.cat([x, x]), torch.cat([levels, levels]), Conditioning.cat([blank, cond]))
        v_0, v_c = both.chunk(2)
        return v_0 + guidance * (v_c - v_0), v_c

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def tensors(self, role: str) -> dict[str, Tensor]:
        """A role's own weights by name: what an optimiser trains and a checkpoint keeps. Empty for a reference without copies."""
        if role in self.networks:
            network = self.networks[role]
            return {**dict(network.named_parameters()), **dict(network.named_buffers())}
        if role not in self.storage.roles:
            raise ValueError(f"no role {role!r}; this policy has {', '.join(self.roles)}")
        return self.storage.tensors(role)

    def parameters(self, role: str) -> list[Tensor]:
        return [tensor for tensor in self.tensors(role).values() if tensor.requires_grad]

    @torch.no_grad()
    def sync(self, target: str, source: str, decay: float = 0.0) -> None:
        """``target <- decay * target + (1 - decay) * source``; decay 0 copies."""
        ours, theirs = self.tensors(target), self.tensors(source)
        torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1.0 - decay)
