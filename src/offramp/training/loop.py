"""The training loop: epochs and steps, saved so that a run killed at any moment ends as if it had never been.

Nothing here keeps a random state: the order of images and their augmentation depend on (seed, epoch, index), and the
generators are seeded anew at every step from (seed, step, process).
"""

import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from offramp import processes
from offramp.config import TrainConfig
from offramp.data import Batch
from offramp.data.randomness import Purpose, hashes
from offramp.devices import PendingCopy
from offramp.errors import OfframpError
from offramp.files import OWNER, RunFolder
from offramp.rules import Workbench
from offramp.rules.optimizer_state import load_state_by_name, state_by_name
from offramp.storage import save_tensors, write_atomically
from offramp.training.callbacks import Callback
from offramp.training.checkpoints import Checkpoint, CheckpointStore, Position
from offramp.training.diagnosis import diagnose, not_finite
from offramp.training.job import Job
from offramp.training.monitor import EpochSums, Placement, mean, watch
from offramp.training.progress import Reporter
from offramp.training.signals import StoppedError, StopRequest
from offramp.training.trunk import FACTOR
from offramp.training.xray import GradientWatch


class Loop:
    """One run's training, from where its folder stands to the end."""

    def __init__(self, folder: RunFolder, job: Job, bench: Workbench, place: Placement) -> None:
        self.network = job.network  # what is saved; what the bench has may be its heads alone
        self.folder, self.bench, self.rule, self.config, self.place = folder, bench, job.rule, job.config, place
        self.train = job.train.on(place.device)
        self.search = job.val.search.on(place.device) if job.val else None
        self.steps_per_epoch = job.train.num_batches
        self.store = CheckpointStore(folder.checkpoints, job.config.keep_checkpoints)
        self.epoch = 0  # finished ones
        self.step = 0  # finished ones of this epoch
        self.sums = EpochSums()
        self.xray = GradientWatch(bench, job.train, job.config.xray)
        self.lines: list[str] = []  # of metrics.jsonl
        self.best = -1.0  # mean accuracy on `search`
        self.saved_at = time.monotonic()

    @functools.cached_property
    def _identity(self) -> str:
        return self.folder.identity()

    def run(self, callbacks: Sequence[Callback]) -> None:
        """Train to the end."""
        with (
            Reporter(self.config.epochs, self.steps_per_epoch, self._global_step()) as reporter,
            StopRequest() as stop,
        ):
            while self.epoch < self.config.epochs:
                self._train_epoch(reporter, stop)
                self._finish_epoch(reporter, callbacks)
                self._leave(stop.agreed(self.place.device) if self.epoch < self.config.epochs else None, reporter)

    def restore(self, note: Callable[[str], None]) -> bool:
        """Continue from the newest good checkpoint; False where there is none."""
        checkpoint = self.store.latest(note, self.folder.owns)
        if checkpoint is None:
            return False
        self._load(checkpoint)
        self._write_records()
        return True

    def _train_epoch(self, reporter: Reporter, stop: StopRequest) -> None:
        started, waited, images = time.monotonic(), 0.0, 0
        previous: tuple[Batch, int, PendingCopy] | None = None
        batches = self.train.batches(seed=self.config.seed, epoch=self.epoch, start=self.step)
        for batch, seconds in _timed(batches):
            waited += seconds
            step = self._global_step()
            images_BCHW, targets_B = self.place(batch.images_BCHW, batch.targets_B)
            batch = batch._replace(images_BCHW=images_BCHW, targets_B=targets_B)
            self._one_step(batch, step)
            # Read a step late, so that the device always has work.
            if previous is not None:
                self._check(*previous)
            previous = batch, step, PendingCopy(self.bench.broken)
            self.step += 1
            images += batch.size
            reporter.after_step(batch.size)
            asked = stop.agreed(self.place.device)
            if self.step < self.steps_per_epoch and (asked is not None or self._time_to_save()):
                self._check(*previous)
                self._check_state()
                self._save()
                self._leave(asked, reporter)
        if previous is not None:
            self._check(*previous)
        self._append_timing(started, waited, images)

    def _one_step(self, batch: Batch, step: int) -> None:
        rate = learning_rate(self.config, step, self.steps_per_epoch)
        for group in self.bench.optimizer.param_groups:
            group["lr"] = rate * group.get(FACTOR, 1.0)
        self._seed(step)
        if not self.bench.network.training:  # a rule looked at something; asking every module takes a millisecond
            self.bench.network.train()
        outcome = self.rule.step(batch, self._progress(step))
        self.sums.add(outcome, batch.targets_B, batch.size, self.bench.network.num_classes)
        self.xray.add(outcome, batch, self._progress(step))
        self._average_statistics(len(batch.targets_B) / batch.size)

    def _finish_epoch(self, reporter: Reporter, callbacks: Sequence[Callback]) -> None:
        self.rule.end_epoch()
        self._check_state()
        self.epoch, self.step = self.epoch + 1, 0
        last_step = self._global_step() - 1
        watched: dict[str, Any] = {"search_top1": None, "search_nll": None}
        if self.search is not None:
            watched = dict(watch(self.bench, self.search, self.place))
        line = {
            "epoch": self.epoch,
            "step": last_step + 1,
            "lr": learning_rate(self.config, last_step, self.steps_per_epoch),
            **self.sums.means(),
            **watched,
        }
        self._check_figures(line)
        line["stats"] = {name: [_finite(value) for value in values] for name, values in line["stats"].items()}
        self.lines.append(json.dumps(line, allow_nan=False))
        self.sums = EpochSums()
        self.xray.end_epoch(self.epoch)
        if self.config.keep_best and self.search is not None and mean(line["search_top1"]) > self.best:
            self.best = mean(line["search_top1"])
            self._write_weights(self.folder.best_weights)
        self._save()  # before the records: what stands there is always in a checkpoint
        self._write_records()
        reporter.after_epoch(line)
        for callback in callbacks:
            callback.epoch(line)

    def write_final_weights(self) -> None:
        """The mark of a finished run."""
        self._check_state()  # again: of a finished training that is continued it is the only time
        self._write_weights(self.folder.weights)

    # -- state ---------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if processes.rank() != 0 or not self.folder.kept:
            return
        sums, sums_values = self.sums.state()
        tensors = self._state()
        tensors |= {f"sums.{name}": t for name, t in sums.items()}
        tensors |= {f"xray.{name}": t for name, t in self.xray.state().items()}
        position = Position(
            run=self._identity,
            epoch=self.epoch,
            step=self.step,
            sums=sums_values,
            metrics=tuple(self.lines),
            best=self.best,
        )
        self.store.save(self._global_step(), Checkpoint(tensors, position))

    def _state(self) -> dict[str, Tensor]:
        """What training goes on with: network, optimiser, rule. All of it finite, or it is not saved."""
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": t for name, t in state_by_name(self.bench.optimizer, self.network).items()}
        return tensors | {f"rule.{name}": t for name, t in self.rule.state().items()}

    def _load(self, checkpoint: Checkpoint) -> None:
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "rule": {}, "sums": {}, "xray": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.network.load_state_dict(parts["network"])
        load_state_by_name(self.bench.optimizer, self.network, parts["optimizer"])
        self.rule.load_state(parts["rule"])
        position = checkpoint.position
        self.sums.load_state(parts["sums"], position.sums, self.place.device)
        self.xray.load_state(parts["xray"])
        self.epoch, self.step = position.epoch, position.step
        self.lines, self.best = list(position.metrics), position.best

    def _average_statistics(self, share: float) -> None:
        """Running statistics of batch norm: the mean over processes, by images, so that any can save for all."""
        if not processes.active():
            return
        network = self.network
        moving = network.exits if self.config.freeze_trunk else network  # rounding would move a frozen trunk's
        norms = [m for m in moving.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        if buffers:
            flat = processes.sum_over_all(torch.cat([b.reshape(-1) for b in buffers]) * share)
            for buffer, part in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    # -- small things --------------------------------------------------------------------------------------------------

    def _global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def _progress(self, step: int) -> float:
        return step / (self.config.epochs * self.steps_per_epoch)

    def _seed(self, step: int) -> None:
        seed = int(hashes(Purpose.STEP, self.config.seed, step, processes.rank())[0] >> 1)
        if self.place.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` also looks for devices, half a millisecond
        else:
            torch.manual_seed(seed)

    def _check(self, batch: Batch, step: int, broken: PendingCopy) -> None:
        """Stop where a step met something that is not finite. The gate kept it from the weights, then and since."""
        if not broken.read():
            return
        self._seed(step)
        raise self._stopped(step, diagnose(self.bench, batch, self._progress(step)))

    def _check_state(self) -> None:
        """Stop before a save where a weight or a statistic is not finite: an update or a running mean can overflow."""
        name = not_finite(self._state())
        if name is not None:
            part, _, name = name.partition(".")
            owner = {"network": "", "optimizer": "the optimiser's ", "rule": "the rule's "}[part]
            step = max(self._global_step() - 1, 0)
            raise self._stopped(step, f"{owner}{name} holds numbers that are not finite")

    def _check_figures(self, line: dict[str, Any]) -> None:
        """Stop where a finished epoch has no loss, or the network no answers, though its weights are finite."""
        last = self._global_step() - 1
        if not math.isfinite(line["loss"]):
            raise self._stopped(last, "the mean loss of the epoch is not finite")
        for k, value in enumerate(line["search_nll"] or (), 1):
            if not math.isfinite(value):
                what = f"exit {k}: the loss on the held-out images is not finite, though the weights are"
                raise self._stopped(last, what)

    def _stopped(self, step: int, what: str) -> OfframpError:
        newest = self.store.newest()
        kept = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
        return OfframpError(
            f"Training stopped at step {step + 1} (epoch {step // self.steps_per_epoch + 1}): {what}. Nothing of it "
            f"was saved; {kept}. A lower learning rate or a warm-up (in a new folder) may help."
        )

    def _leave(self, number: int | None, reporter: Reporter) -> None:
        if number is not None:
            done = f"after {self.epoch} epochs and {self.step} steps"
            saved = f"saved {done}. The same command continues." if self.folder.kept else f"{done}. Nothing is saved."
            reporter.note(f"Stopped by {signal.Signals(number).name}; {saved}")
            raise StoppedError(number)

    def _time_to_save(self) -> bool:
        every = self.config.save_every_steps
        if every is not None and self._global_step() % every == 0:
            return True
        return time.monotonic() - self.saved_at > 60 * self.config.save_every_minutes

    def _write_weights(self, path: Any) -> None:
        if processes.rank() == 0 and self.folder.kept:
            network = self.network
            spec = None if network.spec is None else network.spec.to_json()
            metadata = {"network": json.dumps(spec, sort_keys=True), OWNER: self._identity}
            save_tensors(path, network.state_dict(), metadata)

    def _write_records(self) -> None:
        if processes.rank() == 0:
            self.xray.save(self.folder.xray)
            write_atomically(self.folder.metrics, "".join(line + "\n" for line in self.lines).encode())

    def _append_timing(self, started: float, waited: float, images: int) -> None:
        if processes.rank() == 0:
            seconds = time.monotonic() - started
            line = {
                "epoch": self.epoch + 1,
                "images": images,
                "seconds": seconds,
                "data_seconds": waited,
                "images_per_second": images / max(seconds, 1e-9),
            }
            with open(self.folder.timing, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


def _finite(value: float) -> float | None:
    """A statistic for JSON, which has no word for one that is not finite."""
    return value if math.isfinite(value) else None


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds waited for it."""
    while True:
        started = time.perf_counter()
        with suppress(StopIteration):
            batch = next(batches)
            yield batch, time.perf_counter() - started
            continue
        return


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
