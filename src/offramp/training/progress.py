"""What a person sees while a network trains: a bar with rate and time left in a terminal, plain lines in a log file."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from offramp import processes
from offramp.data import Split
from offramp.data.files import check_found
from offramp.terminal import Screen, escaped
from offramp.training.monitor import mean

_QUIET_SECONDS = 60.0  # between plain lines within an epoch


class Reporter:
    """Bar or lines, on standard error, from the first process only."""

    def __init__(self, epochs: int, steps_per_epoch: int, done_steps: int) -> None:
        self.console = Screen(stderr=True, quiet=processes.rank() != 0, highlight=False)
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.step = self.first_step = done_steps
        self.images = 0
        self.started = self.spoke = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=epochs * steps_per_epoch, completed=done_steps, rate=0.0)

    def __enter__(self) -> "Reporter":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(escaped(text), markup=False, soft_wrap=True)

    def after_step(self, images: int) -> None:
        """Count a step of `images` images."""
        self.step += 1
        self.images += images
        now = time.monotonic()
        rate = self.images / max(now - self.started, 1e-9)
        self.bar.update(self.task, completed=self.step, rate=rate)
        if not self.console.is_terminal and now - self.spoke > _QUIET_SECONDS:
            self.spoke = now
            epoch, step = divmod(self.step, self.steps_per_epoch)
            self.note(
                f"epoch {epoch + 1}/{self.epochs}  step {step}/{self.steps_per_epoch}  {rate:,.0f} images/s  "
                f"{self._time_left(now)} left"
            )

    def after_epoch(self, line: dict[str, Any]) -> None:
        """Tell how an epoch ended."""
        where = "search" if line["search_top1"] is not None else "train"
        top1_K = line[f"{where}_top1"]
        now = self.spoke = time.monotonic()
        exits = " ".join(f"{value:.1f}" for value in top1_K)
        self.note(
            f"epoch {line['epoch']}/{self.epochs}  loss {line['loss']:.4f}  {where} {exits} (mean {mean(top1_K):.2f} %)"
            f"  {self._time_left(now)} left"
        )

    def _time_left(self, now: float) -> str:
        done = self.step - self.first_step
        left = (self.epochs * self.steps_per_epoch - self.step) * (now - self.started) / max(done, 1)
        return f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"


def check_readable(parts: Sequence[Split]) -> None:
    """Refuse parts with images that cannot be read, and name them, a line for each of the first twenty files.

    A run holds to the images it was begun with, so one that is removed later ends it: it could not be evaluated.
    """
    console = Screen(stderr=True, quiet=processes.rank() != 0)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at every image", total=sum(map(len, parts)) / processes.world_size())
        unreadable = [line for part in parts for line in part.unreadable(lambda count: bar.advance(task, count))]
    check_found(unreadable)
