"""`Share`: some of a student's weights with their optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dejavu.adapt.leading import Held

ATTENTION = 0.3
"""Learning rate of the attention, as a share of the MLPs'."""
BETAS = (0.9, 0.98)

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Share:
    """Weights that one thread changes.

    Args:
        names: theirs.
        masters: of all weights, float32.
        used: their copies, which get the gradients.
        turned: transposes of the copies.
        held: weights that are used as their leading bits say, among others.
        learned: what the optimiser changes, by names that begin as those of the weights; None: the masters.
    """

    def __init__(
        self,
        names: Sequence[str],
        masters: Mapping[str, Tensor],
        used: Mapping[str, Tensor],
        turned: Mapping[str, Tensor],
        held: Mapping[str, Held],
        learned: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._tensors = {name: (masters[name], used[name]) for name in names}
        self._held = held
        self._turned = [(turned[name], used[name]) for name in names if name in turned]
        self._learned = {name: masters[name] for name in names} if learned is None else dict(learned)
        parts: dict[float, list[Tensor]] = {1.0: [], ATTENTION: []}
        for name, tensor in self._learned.items():
            tensor.grad = torch.zeros_like(tensor)
            parts[ATTENTION if name.split(".")[2] in ("q", "k", "v", "o") else 1.0].append(tensor)
        groups = [{"params": tensors, "share": share} for share, tensors in parts.items() if tensors]
        self._adam = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def take_gradients(self) -> float:
        """Move the gradients to what is learned. Returns the sum of their squares."""
        for name, (_, used) in self._tensors.items():
            assert used.grad is not None  # noqa: S101
            self._take(name, used.grad)
            used.grad = None
        return float(torch.stack(torch._foreach_norm(self._gradients())).double().square().sum())

    @torch.no_grad()
    def update(self, rate: float, scale: float) -> None:
        """One step at the learning rate `rate`, with the gradients times `scale`."""
        if scale < 1:
            torch._foreach_mul_(self._gradients(), scale)
        for group in self._adam.param_groups:
            group["lr"] = rate * group["share"]
        self._adam.step()
        self._publish()

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that `restore` needs."""
        found = {}
        for name, tensor in self._learned.items():
            found[name] = tensor.numpy()
            for part in _MOMENTS:
                found[f"{name}.{part}"] = self._adam.state[tensor][part].numpy()
        return found

    @torch.no_grad()
    def restore(self, arrays: Mapping[str, NDArray[np.float32]], steps: int) -> None:
        """Go on from `arrays`."""
        for name, tensor in self._learned.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
            moments = {part: torch.from_numpy(arrays[f"{name}.{part}"]) for part in _MOMENTS}
            self._adam.state[tensor] = {"step": torch.tensor(float(steps)), **moments}
        self._publish()

    def _gradients(self) -> list[Tensor]:
        return [tensor.grad for tensor in self._learned.values() if tensor.grad is not None]

    def _take(self, name: str, gradient: Tensor) -> None:
        """Make the gradient of what is learned from that of a weight."""
        grad = self._learned[name].grad
        assert grad is not None  # noqa: S101
        grad.copy_(gradient)

    def _rebuild(self, name: str, master: Tensor) -> None:
        """Make a weight from what is learned: here it is the same."""

    def _publish(self) -> None:
        for name, (master, used) in self._tensors.items():
            self._rebuild(name, master)
            if name in self._held:
                self._held[name].publish()
            else:
                used.copy_(master)
        for turned, used in self._turned:
            turned.copy_(used.T)
