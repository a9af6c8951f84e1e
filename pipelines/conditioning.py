"""What the UNet is conditioned on: encoded prompts, and the table of a run's prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


def batches(count: int, size: int) -> list[slice]:
    """0 to `count` in parts of `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told of N prompts.

    Attributes:
        states: (N, L, E) text-encoder states; those of two encoders side by side.
        pooled: (N, P) pooled text embedding, and
        time_ids: (N, 6) original size, crop and target size of the image, where the UNet is told these too
            (SDXL); else None.
        lengths: (N,) int64, how many of the L states are a prompt's own, where the network is told no others;
            else None.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    @classmethod
    def cat(cls, parts: list[Conditioning]) -> Conditioning:
        """Join conditionings of one backbone."""
        columns = zip(*(part._tensors() for part in parts), strict=True)
        states, *beside = (None if c[0] is None else torch.cat(c) for c in columns)
        assert states is not None
        return cls(states, *beside)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: slice | torch.Tensor) -> Conditioning:
        """The prompts at `index`."""
        return self._each(lambda tensor: tensor[index])

    def expand(self, count: int) -> Conditioning:
        """One prompt's conditioning, `count` times, without a copy."""
        return self._each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, target: torch.dtype | torch.device) -> Conditioning:
        """Embeddings in another dtype or on another device; counts stay as they are."""
        return self._each(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)

    @property
    def own_states(self) -> list[torch.Tensor]:
        """Of each prompt the states that are its own, (length, E)."""
        assert self.lengths is not None
        return [states[:length] for states, length in zip(self.states, self.lengths.tolist(), strict=True)]

    @property
    def added(self) -> dict[str, torch.Tensor] | None:
        """What the UNet takes beside the states, by diffusers' names (`added_cond_kwargs`)."""
        return (
            None
            if self.pooled is None or self.time_ids is None
            else {"text_embeds": self.pooled, "time_ids": self.time_ids}
        )

    @property
    def vector(self) -> torch.Tensor:
        """(N, P) or (N, E), float32: a prompt in one vector, its pooled embedding, or else the states
        averaged over the tokens."""
        if self.pooled is not None:
            return self.pooled.float()
        if self.lengths is not None:
            return torch.stack([states.float().mean(dim=0) for states in self.own_states])
        return self.states.float().mean(dim=1)

    def _tensors(self) -> tuple[torch.Tensor | None, ...]:
        return self.states, self.pooled, self.time_ids, self.lengths

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        _, *beside = self._tensors()
        return Conditioning(change(self.states), *(None if one is None else change(one) for one in beside))


@dataclass
class PromptTable:
    """N prompts and what the UNet needs of them.

    Attributes:
        prompts: N texts.
        conditioning: of the N prompts.
        negative: of no prompt, length 1, for classifier-free guidance.
        forget: (N,) bool, whether the prompt asks for the concept.
    """

    prompts: list[str]
    conditioning: Conditioning
    negative: Conditioning
    forget: torch.Tensor

    @property
    def pooled(self) -> torch.Tensor:
        """(N, P or E): each prompt in one vector (`Conditioning.vector`)."""
        return self.conditioning.vector
