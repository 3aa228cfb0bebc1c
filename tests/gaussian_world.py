"""A one-dimensional world with exact answers at every noise level: roles whose data is N(mean, std^2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrl.policy import Copies, FlowPolicy
from genrl.precision import Precision
from genrl.types import Batch, Conditioning


class GaussianFlow(nn.Module):
    """The exact velocity ``E[eps - x0 | x_sigma]`` of data N(mean, std^2), both trainable."""

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(float(mean)))
        self.std = nn.Parameter(torch.tensor(float(std)))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        variance = ((1 - sigma) * self.std) ** 2 + sigma**2
        slope = (sigma - (1 - sigma) * self.std**2) / variance
        return -self.mean + slope * (x - (1 - sigma) * self.mean)


class GaussianModel:
    """The model contract over a ``GaussianFlow``; latents are ``[B, 1, 2, 2]``, images their sigmoid."""

    latent_shape = (1, 2, 2)
    precision = Precision()
    unconditional = Conditioning(torch.zeros(1, 1, 1), torch.zeros(1, 1))

    def __init__(self) -> None:
        self.network = GaussianFlow()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)

    def velocity(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return network(x, sigma)

    def features(self, network: nn.Module, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return network(x, sigma)

    def decode(self, latents: Tensor) -> Tensor:
        return (self.gain * latents).expand(-1, 3, -1, -1).sigmoid()


def gaussian_policy(roles: dict[str, tuple[float, float]], networks: dict[str, nn.Module] | None = None) -> FlowPolicy:
    """A policy whose roles have the given (mean, std); every role is a trainable copy, the first is the model's network."""
    model = GaussianModel()
    storage = Copies(model.network, tuple(roles), tuple(roles))
    policy = FlowPolicy(model, storage, networks)
    for role, (mean, std) in roles.items():
        with storage.use(role) as network, torch.no_grad():
            network.mean.fill_(mean)
            network.std.fill_(std)
    return policy


def batch_of(count: int, states: Tensor, predictions: Tensor | None = None, real: Tensor | None = None, seed: int = 0) -> Batch:
    """A batch of recorded states ``[B, T, 1, 2, 2]``; finished samples are the last predictions."""
    predictions = states if predictions is None else predictions
    signal = {"states": states, "predictions": predictions} | (
        {} if real is None else {"real_latents": real, "real_images": real.expand(-1, 3, -1, -1).sigmoid()}
    )
    order = torch.arange(count)
    return Batch(order, order, predictions[:, -1], Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1)), signal, (seed, 1))
