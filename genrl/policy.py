"""A generator in several roles: the actor that is trained, its moving average, the behaviour that draws, the reference that anchors.

Where a role's weights live is decided here and nowhere else: a full copy of the network, a LoRA adapter over one shared
base, or that base with its adapters off. Losses and rollouts say a role's name and see a velocity field.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genrl.kernels.chain import guided
from genrl.offload import Offloaded
from genrl.path import Sigma
from genrl.precision import Precision
from genrl.types import Conditioning

ACTOR, OLD, REF, AVERAGE = "actor", "old", "ref", "average"


class Generator(Protocol):
    """What a model adapter offers (see ``genrl.models``).

    ``velocity`` evaluates a given network without guidance, in the format that it computes in; ``features`` maps ``[B, C, h, w]`` from
    its middle; ``decode`` maps latents to images ``[B, 3, H, W]`` in [0, 1], differentiably; ``unconditional`` is the conditioning of
    guidance's other branch; ``precision`` the number formats; ``student_sigmas`` the levels of a student of so many steps. A model may also
    offer short cuts for previews, ``cheap(network, fp8=, cache=)``, a context in which ``is_cheap`` is true; see ``genrl.models.sd3``.
    """

    @property
    def network(self) -> nn.Module: ...
    @property
    def latent_shape(self) -> tuple[int, ...]: ...
    @property
    def unconditional(self) -> Conditioning: ...
    @property
    def precision(self) -> Precision: ...

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor: ...
    def features(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...
    def student_sigmas(self, steps: int) -> tuple[float, ...]: ...


class Storage(Protocol):
    """Where roles live: ``use`` lends the network that plays a role, ``tensors`` names the weights that are the role's own."""

    @property
    def roles(self) -> tuple[str, ...]: ...

    def use(self, role: str) -> Any: ...
    def tensors(self, role: str) -> dict[str, Tensor]: ...


class Copies:
    """Every role is a full copy of the network, or a given one; only trained roles ever change.

    Args:
        roles: the first plays on ``network`` itself.
        offload: roles that live on the CPU and visit the device while they are used, see ``genrl.offload``.

    Raises:
        ValueError: an offloaded role that is trained, is the first, or is none.
    """

    def __init__(
        self,
        network: nn.Module,
        roles: tuple[str, ...],
        trained: tuple[str, ...] = (ACTOR,),
        given: Mapping[str, nn.Module] | None = None,
        offload: Collection[str] = (),
    ):
        self.roles = roles
        given = given or {}
        for role in offload:
            if role not in roles:
                raise ValueError(f"no role {role!r} to offload; there are {', '.join(roles)}")
            if role in trained or role == roles[0]:
                why = "it is trained" if role in trained else "it is the network itself, on whose device everything runs"
                raise ValueError(f"role {role!r} cannot be offloaded: {why}")
        device = next(network.parameters()).device
        self._offloaded: dict[str, Offloaded] = {}
        self._networks: dict[str, nn.Module] = {}
        for role in roles:
            # buffers are constants, a table of positions say, and large ones: copies share them
            shared = {id(buffer): buffer for buffer in network.buffers()}
            net = given.get(role) or (network if role == roles[0] else copy.deepcopy(network, shared))
            self._networks[role] = net.requires_grad_(role in trained).eval()
            if role in offload:
                self._offloaded[role] = Offloaded(net, device)

    @property
    def offloaded(self) -> tuple[str, ...]:
        """Roles that wait on the CPU."""
        return tuple(self._offloaded)

    @contextmanager
    def use(self, role: str) -> Iterator[nn.Module]:
        with self._offloaded[role].visit() if role in self._offloaded else nullcontext():
            yield self._networks[role]

    def tensors(self, role: str) -> dict[str, Tensor]:
        return {**dict(self._networks[role].named_parameters())}


class Adapters:
    """Roles are LoRA adapters over one network; ``ref`` is that network with its adapters off and has no weights of its own.

    Expects a diffusers model; ``lora`` is a ``peft.LoraConfig``. Adapters start equal, as the same random factors.
    """

    def __init__(self, network: Any, roles: tuple[str, ...], lora: Any, trained: tuple[str, ...] = (ACTOR,)):
        self.roles = roles
        self._network = network.requires_grad_(False).eval()
        place = next(network.parameters()).device
        # peft makes adapters on the CPU and moves them after the base, but not to where no data is
        with place if place.type == "meta" else nullcontext():
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
        for name, own in self._own.items():
            for tensor in own.values():
                tensor.requires_grad_(name in trained)
        self._resting = trained[0]
        self._activate(self._resting)

    @contextmanager
    def use(self, role: str) -> Iterator[nn.Module]:
        self._activate(role)
        if torch.is_grad_enabled() and role != REF:
            # backward (and checkpointed re-computation) must find the adapter active that has the graph
            self._resting = role
        try:
            yield self._network
        finally:
            self._activate(self._resting)

    def _activate(self, role: str) -> None:
        # peft lets an adapter learn when it becomes active, and others not: who learns is decided elsewhere
        flags = [(tensor, tensor.requires_grad) for own in self._own.values() for tensor in own.values()]
        for layer in self._layers:
            layer.enable_adapters(role != REF)
            if role != REF:
                layer.set_adapter(role)
        for tensor, flag in flags:
            tensor.requires_grad_(flag)

    def tensors(self, role: str) -> dict[str, Tensor]:
        return self._own.get(role, {})


class FlowPolicy:
    """Velocity fields that share one model and one conditioning, and the side networks (critics) trained along with them."""

    def __init__(self, model: Generator, storage: Storage, networks: Mapping[str, nn.Module] | None = None):
        self.model = model
        self.storage = storage
        self.networks = dict(networks or {})
        self.precision = model.precision
        self._pair: tuple[Any, Any] = (None, None)

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.storage.roles, *self.networks)

    def velocity(self, x: Tensor, sigma: Sigma, cond: Conditioning, role: str = ACTOR, guidance: float = 1.0) -> Tensor:
        """Velocity ``[B, ...]`` float32 of a role at ``x [B, ...]``, ``sigma`` scalar or ``[B]``.

        Guidance g combines ``v_0 + g (v_c - v_0)`` with the unconditional ``v_0``; both branches are one forward pass.
        """
        return guided(self.answer(x, sigma, cond, role, guidance), guidance, self.precision.dtype("combine"))

    def answer(self, x: Tensor, sigma: Sigma, cond: Conditioning, role: str, guidance: float) -> Tensor:
        """What the network says before guidance is applied, in its own format: ``[B, ...]`` without guidance, else ``[2B, ...]``, the
        unconditional rows first."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        if guidance != 1.0:
            x, levels, cond = torch.cat([x, x]), torch.cat([levels, levels]), self._paired(cond)
        with self.storage.use(role) as network:
            return self.model.velocity(network, x, levels, cond)

    def _paired(self, cond: Conditioning) -> Conditioning:
        """The unconditional rows, then those of ``cond``; kept for the next step of a chain, which asks with the same object."""
        if self._pair[0] is not cond:
            empty = self.model.unconditional.to(cond.pooled.device)
            blank = Conditioning(empty.embeds.expand(len(cond), -1, -1), empty.pooled.expand(len(cond), -1))
            self._pair = (cond, Conditioning.cat([blank, cond]))
        return self._pair[1]

    def features(self, x: Tensor, sigma: Sigma, cond: Conditioning, role: str) -> Tensor:
        """A map of inner features ``[B, C, h, w]`` of a role's network, without guidance: what a latent discriminator looks at."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        with self.storage.use(role) as network:
            return self.model.features(network, x, levels, cond)

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

    def parameters(self, *roles: str) -> list[Tensor]:
        return [tensor for role in roles for tensor in self.tensors(role).values() if tensor.requires_grad]

    @contextmanager
    def only(self, *roles: str) -> Iterator[None]:
        """Other trained roles and networks get no gradient: a loss may look through them, but only these roles learn."""
        others = self.parameters(*(name for name in self.roles if name not in roles))
        for tensor in others:
            tensor.requires_grad_(False)
        try:
            yield
        finally:
            for tensor in others:
                tensor.requires_grad_(True)

    @torch.no_grad()
    def sync(self, target: str, source: str, decay: float = 0.0) -> None:
        """``target <- decay * target + (1 - decay) * source``; decay 0 copies. The two may differ in device and dtype."""
        named = self.tensors(source)
        ours, theirs = [*self.tensors(target).values()], [named[name] for name in self.tensors(target)]
        if decay == 0.0 and ours and ours[0].device == theirs[0].device:
            torch._foreach_copy_(ours, theirs)
        elif decay == 0.0:
            for here, there in zip(ours, theirs, strict=True):
                here.copy_(there)
        else:
            torch._foreach_lerp_(ours, [there.to(here) for here, there in zip(ours, theirs, strict=True)], 1.0 - decay)
