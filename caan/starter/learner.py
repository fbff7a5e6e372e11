"""The starter's face network in training, with batch norms; how to fold them in and out."""

import copy
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from caan.backbones.starter_face import (
    NUM_EMBEDDED,
    ResidualBlock,
    StarterFace,
    build_trunk,
    fold_batch_norms,
)
from caan.schema import EMOTIONS


class Learner(nn.Module):
    """The face network in training, with batch norms; `width` multiplies its channels."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.trunk = build_trunk(width)
        self.classifier = nn.Linear(NUM_EMBEDDED * width, len(EMOTIONS))
        nn.init.normal_(self.classifier.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.norm2.weight)  # every block starts as its shortcut
        self.to(memory_format=torch.channels_last)

    def forward(self, standard_B1HW: Tensor) -> Tensor:
        """Logits [B, K] of standardised grey images [B, 1, H, W]."""
        images = standard_B1HW.contiguous(memory_format=torch.channels_last)
        embedded = self.trunk(images).mean((2, 3))
        return self.classifier(functional.dropout(embedded, 0.3, self.training))

    def folded(self) -> "Learner":
        """A frozen copy for inference, with every batch norm folded into its convolution."""
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        fold_batch_norms(copied.trunk)
        return copied.to(memory_format=torch.channels_last)

    def finished(self) -> StarterFace:
        """The network in the form that ships, with temperature 1."""
        network = StarterFace(weights=None)
        network.load_state_dict({**self.folded().state_dict(), "temperature": torch.ones(())})
        return network.to(self.classifier.weight.device).eval()


@torch.no_grad()
def unfold(network: StarterFace, images: Tensor) -> Learner:
    """A learner with batch norms that computes the same as the network.

    The norms get the means and variances of the convolutions' outputs for standardised images
    [B, 1, H, W]. The weights of a convolution get half their usual initial size. In front of a norm
    only their direction matters for the output, and their size sets the speed of learning.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}  # filled by hooks: the ReLUs work in place
    folded = dict(network.trunk.named_modules())
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update(
                {name: torch.var_mean(output, (0, 2, 3), correction=0)}
            )
        )
        for name, module in folded.items()
        if isinstance(module, nn.Conv2d)
    ]
    network.embed(images)
    for hook in hooks:
        hook.remove()
    learner = Learner().to(images.device)
    learner.classifier.load_state_dict(network.classifier.state_dict())
    layers = list(learner.trunk.named_modules())
    for (name, conv), (_, norm) in itertools.pairwise(layers):
        if not isinstance(conv, nn.Conv2d):
            continue
        assert isinstance(norm, nn.BatchNorm2d), "a norm follows every convolution"
        assert norm.running_mean is not None
        assert norm.running_var is not None
        source = folded[name]
        assert isinstance(source, nn.Conv2d)
        assert source.bias is not None
        sizes = source.weight.flatten(1).norm(dim=1).clamp(1e-6)
        scale = 0.5 * math.sqrt(2 * conv.in_channels / conv.out_channels) / sizes
        variance, mean = found[name]
        conv.weight.copy_(source.weight * scale[:, None, None, None])
        norm.running_mean.copy_((mean - source.bias) * scale)
        norm.running_var.copy_(variance * scale**2)
        norm.weight.copy_((norm.running_var + norm.eps).sqrt() / scale)
        norm.bias.copy_(mean)
    return learner
