"""The learning rate, set before every step."""

import math

from offramp.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Rate of `step` (from 0, over the whole run).

    Cosine per step: half of lr (1 + cos(pi s / S)), from lr exactly to just above 0, no floor. Multistep: divided by
    ten from the epoch on that each milestone (a share of all epochs) names. Warm-up, where asked for, is linear over
    its own steps, and the cosine spans the rest.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    if config.schedule == "multistep":
        epoch = step // steps_per_epoch
        # Up to rounding: 0.55 * 100 is a little above 55.
        return config.lr * 0.1 ** sum(epoch >= share * config.epochs - 1e-6 for share in config.milestones)
    share = (step - warmup_steps) / (config.epochs * steps_per_epoch - warmup_steps)
    return 0.5 * config.lr * (1 + math.cos(math.pi * share))
