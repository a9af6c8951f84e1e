"""What the peer and we have in common. TRL fixes the LoRA: rank 4 on every attention projection."""

from __future__ import annotations

PEER_RELEASE = "trl==0.23.1"
"""The last with a DDPOTrainer."""
IMAGES = 32
"""In an epoch, in a batch of a rollout and in a batch of an update alike."""
STEPS = 16
GUIDANCE_SCALE = 7.5
CLIP_RANGE = 0.2
ADVANTAGE_CLIP = 5.0
MATCHED = [
    *("--advantage", "ddpo", "--kl_coef", "0", "--anchor_kl_coef", "0", "--critic_steps", "0"),
    *("--images_per_iteration", str(IMAGES), "--train_batch_size", str(IMAGES)),
    *("--gradient_accumulation_steps", str(STEPS), "--num_inference_steps", str(STEPS)),
    *("--guidance_scale", str(GUIDANCE_SCALE), "--train_timestep_fraction", "1", "--masked_steps", "0"),
    *("--clip_range", str(CLIP_RANGE), "--advantage_clip", str(ADVANTAGE_CLIP), "--target_kl", "1e9"),
    *("--max_retain_drop", "1e9", "--max_retain_kl", "1e9", "--rank", "4"),
    *("--lora_target_modules", "to_q", "to_k", "to_v", "to_out.0"),
    *("--adam_beta1", "0.9", "--adam_beta2", "0.999"),
    *("--retain_batch_size", "1", "--retain_rollouts", "64", "--warmup_rollouts", "64"),
    *("--num_vocabulary_prompts", "0", "--no-train_text_encoder", "--lr_scheduler", "constant"),
]
"""Our trainer with the algorithm of the peer: one optimizer step an epoch over all steps, no KL, no rollback,
one image to watch."""
