"""Prompts, rollouts and rewards of one concept on one base model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from common.errors import Unsound
from common.processes import all_rows, own_batches, own_rows
from pipelines.backbone import Backbone
from pipelines.conditioning import PromptTable
from policy.kernel import ReverseKernel
from policy.policy import Policy
from policy.rollout import all_trajectories
from policy.trajectory import Trajectory
from reward.concept import ConceptSpec
from reward.margin import ConceptReward
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

NEAR = 0.65
"""The share of the way from images of the anchors to those of the concept from which on it is recognised."""
INDISTINCT = 1e-6
"""The most by which vectors of different images may differ and still be the same, in any of their numbers."""


@dataclass
class ImageScores:
    """What B finished images come to.

    Attributes:
        embeddings: (B, D), the teacher's.
        contrast: (B,) standard deviation of the pixels in [-1, 1], mean over the channels; near 0 is a blank
            image of any colour.
    """

    embeddings: torch.Tensor
    contrast: torch.Tensor


@dataclass
class ForgetScore:
    """What the reward says of B trajectories of forget prompts.

    Attributes:
        potentials: (B, T+1) margins: the predictor's for noisy states, the teacher's for x_0.
        forgotten: (B,) bool, whether the teacher finds an anchor nearer than the concept in the finished
            image.
        replacement: (B,) cosine of the finished image and its nearest anchor; small if it shows nothing that
            has a name.
        anchor_ids: (B,) the prompt of that anchor, as a row of the prompt table.
        contrast: (B,) as in `ImageScores`.
    """

    potentials: torch.Tensor
    forgotten: torch.Tensor
    replacement: torch.Tensor
    anchor_ids: torch.Tensor
    contrast: torch.Tensor

    @property
    def terminal(self) -> torch.Tensor:
        """(B,): the reward of the finished image."""
        return self.potentials[:, -1]


@dataclass
class RetainScore:
    """What the teacher says of B finished images of retain prompts.

    Attributes:
        reward: (B,) cosine of the image and its own prompt.
        drop: (B,) how far that lies below what the base has on the same prompt, in units of the reward's
            contrast.
        recognised: (B,) bool, whether its own prompt is nearer than every other forget or retain prompt.
    """

    reward: torch.Tensor
    drop: torch.Tensor
    recognised: torch.Tensor


@dataclass
class Environment:
    """Everything that stays as it is while the policy learns."""

    backbone: Backbone
    policy: Policy
    spec: ConceptSpec
    teacher: Teacher
    predictor: RewardPredictor
    reward: ConceptReward
    anchor_rows: torch.Tensor
    vocabulary_ids: torch.Tensor
    """Rows of the prompts with other names in the concept's place."""
    prompt_text: torch.Tensor
    offload_trajectories: bool = False
    """Whether trajectories are kept in main memory."""
    base_cosine: torch.Tensor | None = None
    """(N,) the base's mean cosine of image and prompt on every prompt, once calibrated."""

    @property
    def kernel(self) -> ReverseKernel:
        """The reverse process that the policy acts under."""
        return self.policy.kernel

    @property
    def table(self) -> PromptTable:
        """The prompts of the run, as the base reads them; the forget prompts come first."""
        return self.policy.table

    @property
    def batch_size(self) -> int:
        """How many trajectories or images go through a network together."""
        return self.policy.batch_size

    @property
    def pipe(self) -> DiffusionPipeline:
        """The base, with the adapter once there is one."""
        return self.backbone.pipe

    def offload_models(self) -> None:
        """Have everything but UNet and reward predictor wait in main memory while it is not in use, and
        the VAE decode sparingly."""
        for module in (self.backbone.vae, *self.backbone.text_encoders, self.teacher.model):
            module.to("cpu")
        self.backbone.decode_sparingly()

    def on_device(self) -> AbstractContextManager[None]:
        """Within, nothing waits in main memory: to call the pipeline as its users do, or the teacher."""
        return self.backbone.on_device(*self.backbone.modules, self.teacher.model)

    @property
    def forget_ids(self) -> torch.Tensor:
        return self.table.forget.nonzero().flatten()

    @property
    def retain_ids(self) -> torch.Tensor:
        """Rows of the retain prompts; anchors that are none of them come after."""
        first = len(self.spec.forget_prompts)
        return torch.arange(first, first + len(self.spec.retain_prompts), device=self.table.forget.device)

    @property
    def anchor_ids(self) -> torch.Tensor:
        """Rows of all anchors, each once."""
        return self.anchor_rows.unique()

    def collect(self, prompt_ids: torch.Tensor, generator: torch.Generator) -> Trajectory:
        """Roll the current policy out, one trajectory for each of `prompt_ids`; the processes share the
        work."""
        mine = self.policy.rollout(
            prompt_ids, generator, offload=self.offload_trajectories, rows=own_rows(len(prompt_ids))
        )
        return all_trajectories(mine, prompt_ids)

    def draw(self, ids: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` of `ids`, each as often as any other but for the remainder, which is drawn at random."""
        order = ids[torch.randperm(len(ids), generator=generator).to(ids.device)]
        return torch.cat([ids.repeat(count // len(ids)), order[: count % len(ids)]])

    @torch.no_grad()
    def calibrate(self, forget: Trajectory, retain: Trajectory) -> tuple[ImageScores, ImageScores]:
        """Put the reward on the scale of the base's own images: its trajectories of forget and of retain
        prompts, whose images are returned.

        Raises:
            Unsound: teacher or predictor answers the same to every image.
        """
        finished = self.finish(forget), self.finish(retain)
        concept, others = (images.embeddings for images in finished)
        self.check_reward(forget, torch.cat([concept, others]))
        is_anchor = (self.anchor_rows[..., None] == retain.prompt_ids).any(dim=1)
        self.reward = self.reward.calibrated(concept, forget.prompt_ids, others, is_anchor)
        ids = torch.cat([forget.prompt_ids, retain.prompt_ids])
        own = (torch.cat([concept, others]) * self.prompt_text[ids]).sum(-1)
        count = torch.zeros(len(self.prompt_text), device=own.device).index_add(0, ids, torch.ones_like(own))
        total = torch.zeros_like(count).index_add(0, ids, own)
        self.base_cosine = torch.where(count > 0, total / count.clamp(min=1), own[len(concept) :].mean())
        return finished

    def check_reward(self, rollouts: Trajectory, seen: torch.Tensor) -> None:
        """Refuse a teacher or a predictor to which all images are alike.

        Args:
            rollouts: several trajectories.
            seen: (N, D), what the teacher sees in finished images.

        Raises:
            Unsound: nothing can be learnt from that.
        """
        said = self.predict(rollouts)
        for who, vectors, advice in (
            (
                "teacher",
                seen,
                "take another --clip_model or --classifier_name_or_path, or look at what the base draws",
            ),
            ("reward predictor", said, "make it anew with `python -m reward.train`"),
        ):
            if len(vectors) > 1 and (vectors.amax(0) - vectors.amin(0)).max() < INDISTINCT:
                raise Unsound(
                    f"The {who} answers the same to every image, so nothing can be learnt from it; {advice}."
                )

    @torch.no_grad()
    def finish(self, trajectory: Trajectory) -> ImageScores:
        """Decode the last latents and let the teacher look at them, batch by batch; the processes share
        the work."""
        embeddings, contrast = [], []
        with self.backbone.on_device(self.backbone.vae, self.teacher.model):
            for rows in own_batches(len(trajectory), self.batch_size):
                pixels = self.backbone.decode(trajectory.latents[rows, -1])
                embeddings.append(self.teacher.encode_images(pixels))
                contrast.append(pixels.std(dim=(2, 3)).mean(dim=1))
        return ImageScores(
            all_rows(torch.cat(embeddings), len(trajectory)), all_rows(torch.cat(contrast), len(trajectory))
        )

    @torch.no_grad()
    def predict(self, trajectory: Trajectory) -> torch.Tensor:
        """(B, T, D): what the predictor says of all states but the finished one; the processes share the
        work."""
        mine = trajectory.latents[own_rows(len(trajectory)), :-1]
        return all_rows(self.predictor.score_trajectory(mine, trajectory.timesteps[:-1]), len(trajectory))

    def potential(self, latents: torch.Tensor, state: int, prompt_ids: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) noisy states at index `state` of trajectories of forget prompts -> margins (B,),
        differentiable."""
        timesteps = self.kernel.timesteps[state].expand(len(latents))
        return self.reward.margin(self.predictor(latents, timesteps)[:, None], prompt_ids).squeeze(1)

    @torch.no_grad()
    def score_forget(self, trajectory: Trajectory, finished: ImageScores | None = None) -> ForgetScore:
        """Margins of every state of trajectories of forget prompts (the first rows of the table);
        `finished` if they are finished already."""
        rows = trajectory.prompt_ids
        noisy = self.predict(trajectory)
        finished = finished or self.finish(trajectory)
        clean = finished.embeddings
        potentials = torch.cat(
            [self.reward.margin(noisy, rows), self.reward.margin(clean[:, None], rows)], dim=1
        )
        gone, nearest, column = self.reward.forgotten(clean, rows)
        return ForgetScore(potentials, gone, nearest, self.anchor_rows[rows, column], finished.contrast)

    @torch.no_grad()
    def shows_concept(self, trajectory: Trajectory) -> torch.Tensor:
        """(B,) bool, whether the teacher recognises the concept in the finished images of any prompts: under
        some forget prompt they come near to the base's own."""
        seen = self.finish(trajectory).embeddings[:, None]
        rows = torch.arange(len(self.spec.forget_prompts), device=seen.device)
        scores = torch.stack([self.reward.target_score(seen, row.expand(len(seen)))[:, 0] for row in rows], 1)
        return (scores > self.reward.natural + NEAR * self.reward.contrast).any(dim=1)

    @torch.no_grad()
    def score_retain(self, trajectory: Trajectory, finished: ImageScores | None = None) -> RetainScore:
        """The teacher's view of the finished images of retain prompts; `finished` if they are finished
        already."""
        ids = trajectory.prompt_ids
        cosine = (finished or self.finish(trajectory)).embeddings @ self.prompt_text.T
        own = cosine.gather(1, ids[:, None]).squeeze(1)
        base = own if self.base_cosine is None else self.base_cosine[ids]
        return RetainScore(own, (base - own) / self.reward.contrast, own >= cosine.amax(dim=1))
