"""Early exits that skip work: calls, streams, deadlines, answers exit by exit, and tuning to this machine.

B images of a batch, K exits, N classes.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.runtime.images import Images
from offramp.runtime.plan import Tally
from offramp.runtime.program import Form, quiet_torch
from offramp.runtime.rows import Answers, Rows
from offramp.runtime.runner import Runner
from offramp.runtime.stream import as_ready, in_turn
from offramp.runtime.tune import tuned
from offramp.runtime.tuning import Tuning, adopt


class Engine(Runner):
    """A network that runs under a policy and skips what the policy makes unnecessary.

        labels, exits, confidence = Engine(network, policy)(images)

    It agrees with `policy.choose` on the logits of a full forward pass, image by image, except where rounding (other
    kernels for other batch sizes, folded batch norm) moves a confidence across a threshold: see `agreement`.

    A plan may leave exits unasked, and `tune` makes such plans where an exit does not pay. No image
    leaves at such an exit, so answers come from later exits than `policy.choose` says: they are those of
    `policy_under(plan)`. `closed` says which exits that are. `anytime` and `each_exit` ask every exit.

    Where the network says how its images were prepared (`network.inputs`), the first ones that the engine is given are
    looked at, and it warns of such as were prepared otherwise.

    Args:
        network: Stays as it is; the engine works on a copy.
        policy: For this network, or for any.
        form: What runs it, in which precision: by default torch in float32, or what a certificate was made with. `tune`
            measures which is fastest.
        plan: How batches are run, whatever their size. `tune` measures which is fastest for which size.
        device: Where to compute: `auto`, `cpu`, `cuda` or `cuda:N`; the network's own device if None.
        backend: Short for `form=Form(backend=...)`.

    Raises:
        UsageError: A policy for another number of exits or other weights, a plan that asks exits that are not there, a
            form and a backend, a form that network or device cannot be run in, or that moves what is certified.
    """

    def tune(
        self,
        images_SCHW: Images,
        *,
        batch_sizes: Sequence[int] = (1, 32, 256),
        forms: Sequence[Form] | None = None,
        seconds: float = 15.0,
        streams: bool = True,
    ) -> Tuning:
        """Measure this machine and run from now on in the form and under the plans that are fastest on it.

        Where exits do not save 5 % of the time, in the times of their parts and then in turns with the network run
        straight on, the plan is to run straight on. What is fastest may leave exits unasked that the policy has: see
        `closed`.

        Args:
            images_SCHW: Like those to come, a few hundred, in mixed order; no labels are needed. Of more than 1,024 so
                many are used, evenly spread.
            batch_sizes: For which plans are wanted.
            forms: To choose from, of those whose answers agree with the network as it is; by default `usual_forms`
                in float32. The network as it is where none agrees. Under a certificate only those that it is of.
            seconds: About how long it may take, without setting forms up: making files for libraries, compiling.
            streams: Whether a plan for streams is wanted too; without it theirs is that for the largest batches, and
                tuning takes that much less.

        Raises:
            UsageError: No images, sizes below 1, no forms.
        """
        tuning, program = tuned(self, self._read(images_SCHW), batch_sizes, forms, seconds, streams)
        adopt(self, tuning, program=program)
        return tuning

    def adopt(self, tuning: Tuning) -> tuple[str, ...]:
        """Run as a tuning says, which may leave exits unasked: see `closed`.

        Returns:
            What differs here from where it was made, in words.

        Raises:
            UsageError: A tuning for other weights or another policy, or in bf16 for one with a certificate.
        """
        return adopt(self, tuning)

    def stream(
        self, batches: Iterable[Images], *, window: int | None = None, tally: Tally | None = None
    ) -> Iterator[Answers]:
        """The answers of each batch in order, on the CPU, while stages run on full batches of survivors of several.

        Args:
            batches: Images `[B, channels, height, width]`, B from 0 up; an iterator is read only as far as needed.
            window: An image is hurried on when so many have come in after it, so that memory and
                waiting stay bounded; 32 chunks if None.
        """
        return in_turn(self, map(self._read, batches), window=window, tally=tally)

    def anytime(
        self,
        images_BCHW: Images,
        *,
        deadline_ms: float,
        clock: Callable[[], float] = time.perf_counter,
        tally: Tally | None = None,
    ) -> Answers:
        """The best answer there is for each image when time is up: that of the last exit it has reached.

        An image that leaves under the policy is done; the others go on until the deadline. The first exit always
        answers, and no stage is begun after the deadline, so it is missed by less than one stage with its exit. The
        clock gives seconds.
        """
        if not isinstance(deadline_ms, (int, float)) or not deadline_ms >= 0:  # NaN is not
            raise UsageError(f"deadline_ms must be a number of at least 0, not {deadline_ms!r}.")
        end = clock() + deadline_ms / 1000
        best = self.nothing()
        with contextlib.closing(self.each_exit(images_BCHW, tally=tally)) as exits:
            for best in exits:  # noqa: B007  the last one is the answer
                self.wait()
                if clock() >= end:
                    break
        return best

    def each_exit(self, images_BCHW: Images, *, tally: Tally | None = None) -> Generator[Answers]:
        """After each exit the best answer there is for every image; ends when all have left.

        Each stage runs when the next answers are asked for. Every exit is asked, also where the policy lets none leave:
        that may be the last answer.
        """
        return self._each_exit(self._read(images_BCHW), tally)

    @torch.inference_mode()
    def _each_exit(self, images_BCHW: Tensor, tally: Tally | None) -> Generator[Answers]:
        if len(images_BCHW) == 0:
            return
        with quiet_torch(self.program):
            carry = self.program.enter(images_BCHW)
        rows: Rows | None = Rows(torch.arange(len(images_BCHW), device=carry[0].device), carry)
        best = self.nothing()
        try:
            for k in range(self.num_exits):
                if rows is None:
                    return
                with quiet_torch(self.program):
                    passed, asked = self.reach(k, k, rows, tally)
                    answers = Answers(asked.labels_B, torch.full_like(asked.labels_B, k), asked.confidence_B)
                    if k == 0:
                        best = answers
                    else:
                        columns = zip(best, answers, strict=True)
                        best = Answers(*(old_B.index_copy(0, rows.ids_B, new_B) for old_B, new_B in columns))
                    _, onward = self.divide(k, passed, asked)
                    rows = None if onward is None else onward.drop(self.plan_for(len(onward)).rows(len(onward)))
                yield best
        finally:
            if tally is not None:
                tally.answer(best.exits_B)

    def as_ready(
        self, batches: Iterable[Images], *, window: int | None = None, tally: Tally | None = None
    ) -> Iterator[tuple[Tensor, Answers]]:
        """The same as soon as they are there: positions `[B]` (int64, from 0 over the whole stream), and answers."""
        return as_ready(self, map(self._read, batches), window=window, tally=tally)

    def __repr__(self) -> str:
        closed = "; ".join(f"{', '.join(map(str, exits))} for {size}" for size, exits in self.closed.items())
        return f"Engine({self.num_exits} exits, {self.program.form}{f', unasked: {closed}' if closed else ''})"
