"""A network that runs under a policy and plans, segment by segment: what calls, streams, deadlines and tuning share.

B images of a batch, K exits, N classes.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from offramp.checks import check_whole
from offramp.choices import Backend
from offramp.costs import cost
from offramp.devices import device_named
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.policy import CERTIFICATE, EVERYBODY, NOBODY, PATIENCE, Policy
from offramp.runtime.agreement import Agreement, agreement
from offramp.runtime.backends import make_program
from offramp.runtime.images import Images, as_images, warn_of_odd
from offramp.runtime.plan import STREAM, Plan, Tally, segments
from offramp.runtime.program import Form, Program, Single, certified_form, check_form, check_scales, quiet_torch
from offramp.runtime.rows import Answers, Left, Rows, in_order, join
from offramp.runtime.straight import Straight, note, now
from offramp.storage import weights_hash


class Asked(NamedTuple):
    """What an exit says of the images that reach it."""

    labels_B: Tensor
    confidence_B: Tensor
    takes_B: Tensor
    """Which of them leave here, a mask."""


class Runner:
    """Runs batches under plans, stage by stage, and after each exit only the rows that go on.

    Arguments and errors are those of `Engine`, which adds streams, deadlines and tuning.
    """

    def __init__(
        self,
        network: EarlyExitNet,
        policy: Policy,
        *,
        form: Form | None = None,
        plan: Plan | None = None,
        device: str | torch.device | None = None,
        backend: Backend | None = None,
    ) -> None:
        if form is not None and backend is not None:
            raise UsageError("Give a form or a backend, not both: Form(backend=...) is a form.")
        if policy.num_exits != network.num_exits:
            raise UsageError(f"This policy is for {policy.num_exits} exits; the network has {network.num_exits}.")
        if policy.network is not None:
            policy.check_network(weights_hash(network.state_dict()))
        self.network, self.policy = network, policy
        self._looked = False
        self.device = device_named(device) if isinstance(device, str) else device
        self.use(form or (Form(backend) if backend else certified_form(policy) or Form()), {1: plan or Plan()})

    @property
    def num_exits(self) -> int:
        """K."""
        return self.policy.num_exits

    def use(
        self,
        form: Form,
        plans: Mapping[int, Plan],
        stream: Plan | None = None,
        *,
        chunks: Mapping[int, int | None] | None = None,
        program: Program | None = None,
    ) -> None:
        """Run in this form from now on, a batch under the plan of the size nearest to its own (by their ratio).

        Streams are run under `stream`; by default under the plan for the largest batches. `chunks` are what `straight`
        takes at a time, by size; by default what the plans do. `program` is one in this form, if there.
        """
        self._check_all(plans, stream)
        check_form(form, self.policy)
        program = program or make_program(self.network, form, self.device)
        check_scales(program, self.policy)
        self.program = program
        self._arrange(plans, stream, chunks or {})

    def under(self, plans: Mapping[int, Plan], stream: Plan | None = None) -> Self:
        """The same under other plans, with this one's program; arguments as of `use`."""
        self._check_all(plans, stream)
        twin = copy.copy(self)
        twin._arrange(plans, stream, {})
        return twin

    def _arrange(self, plans: Mapping[int, Plan], stream: Plan | None, chunks: Mapping[int, int | None]) -> None:
        self.stream_plan = plans[max(plans)] if stream is None else stream
        self.plans = dict(sorted(plans.items()))
        self._calls: dict[int, Callable[..., Answers]] = {}  # what is looked up once needs not be again
        self._segments = {plan: self.segments(plan) for plan in self.plans.values()}
        at_a_time: dict[int | None, int | None] = {None: self.stream_plan.chunk}
        for size, plan in self.plans.items():
            at_a_time[size] = plan.chunk if plan.straight else chunks.get(size, plan.chunk)
        last = self.num_exits - 1
        self._straight = {size: Straight(self.program, self.policy, last, chunk) for size, chunk in at_a_time.items()}

    def _check_all(self, plans: Mapping[int, Plan], stream: Plan | None) -> None:
        if not plans:
            raise UsageError("At least one plan is needed, for some size of batches.")
        for size in plans:
            check_whole("size of batches", size, 1)
        for plan in filter(None, (*plans.values(), stream)):
            self._check(plan)

    def _check(self, plan: Plan) -> None:
        named = {*(plan.asks or ()), *(plan.compacts or ())}
        unknown = sorted(named - set(range(self.num_exits)))
        if unknown:
            raise UsageError(f"The plan names exit {unknown[0]}; exits are numbered from 0 to {self.num_exits - 1}.")
        asked = self.asks(plan)
        if CERTIFICATE in self.policy.found and asked not in (self._open(), (self.num_exits - 1,)):
            raise UsageError(
                "Of a certified policy every exit is asked, or none but the last: closing some sends images to later "
                "exits of which the certificate says nothing."
            )
        if plan.asks is not None and self.policy.measure.name == PATIENCE and set(self._open()) - {*plan.asks}:
            raise UsageError("Under patience every exit that may answer has to be asked: each counts on those before.")

    def _size(self, images: int) -> int:
        return min(self.plans, key=lambda size: max(size / max(images, 1), images / size))

    def plan_for(self, images: int) -> Plan:
        """The plan under which a batch of so many images is run."""
        return self.plans[self._size(images)]

    def runs(self, images: int) -> Callable[..., Answers]:
        """What is called for a batch of so many images, and with a tally, if wanted; straight on, nothing but that."""
        if images not in self._calls:
            self._calls[images] = self._call_for(images)
        return self._calls[images]

    def _call_for(self, images: int) -> Callable[..., Answers]:
        if images == 0:
            return lambda images_BCHW, tally=None: self.nothing()
        plan = self.plan_for(images)
        if plan.straight:
            return self.straight(images)
        single = self.program.single(self.policy, self.asks(plan)) if images == 1 else None
        return self._adaptive if single is None else functools.partial(self._in_one, single, self.segments(plan))

    def straight(self, images: int | None) -> Straight:
        """The plain way for a batch of so many images, in the engine's form: what exits have to be faster than.

        Where the plan is to run straight on, it is what `runs` gives, the same object. None: of a stream.
        """
        return self._straight[None if images is None else self._size(images)]

    def _open(self) -> tuple[int, ...]:
        """The exits whose heads matter: those that may take an image; under patience, those before them too."""
        last = self.num_exits - 1
        if self.policy.measure.name == PATIENCE:
            return tuple(range(self.num_exits))
        return (*(k for k in range(last) if self.policy.thresholds[k] != NOBODY), last)

    def asks(self, plan: Plan) -> tuple[int, ...]:
        """The exits whose heads run under a plan, the last one included."""
        last = self.num_exits - 1
        if plan.straight:
            return (last,)
        wanted = self._open()
        return wanted if plan.asks is None else tuple(k for k in wanted if k in plan.asks or k == last)

    @property
    def closed(self) -> dict[int | str, tuple[int, ...]]:
        """Exits (from 0) that take images under the policy, but are not asked: for "stream", and by size of batch.

        Empty where every exit that matters is asked; see `policy_under` for the policy that is carried out there.
        """
        plans: list[tuple[int | str, Plan]] = [(STREAM, self.stream_plan), *self.plans.items()]
        closed = {size: tuple(sorted({*self._open()} - {*self.asks(plan)})) for size, plan in plans}
        return {size: exits for size, exits in closed.items() if exits}

    def policy_under(self, plan: Plan) -> Policy:
        """The policy that a plan carries out: no image leaves at an exit that it does not ask."""
        asked = self.asks(plan)
        if asked == self._open():
            return self.policy
        thresholds = [self.policy.thresholds[k] if k in asked else NOBODY for k in range(self.num_exits - 1)]
        origin = {"procedure": "exits closed by a plan", "from": self.policy.found}
        return Policy((*thresholds, EVERYBODY), self.policy.measure, origin, self.policy.network)

    def operations(self, plan: Plan | None = None, image_shape: tuple[int, int, int] | None = None) -> tuple[int, ...]:
        """Operations spent on an image that leaves at each exit: the stages up to it, and the heads that are asked.

        By default under the plan of single images, and for images `(channels, height, width)` as the network's.
        """
        asked, costs = self.asks(plan or self.plan_for(1)), cost(self.network, image_shape)
        spent, total = [], 0
        for k in range(self.num_exits):
            total += costs.stages[k].operations
            head = costs.heads[k].operations
            total += head if k in asked else 0
            spent.append(total if k in asked else total + head)
        return tuple(spent)

    def agreement(self, answers: Answers, logits_KBC: Tensor, policy: Policy) -> Agreement:
        """Whether answers of this engine are those of `policy` on the plain network's logits."""
        return agreement(answers, logits_KBC, policy, self.program.num_classes, self.program.form.tolerance)

    def tally(self, *, timed: bool = False) -> Tally:
        """An empty tally for this engine."""
        return Tally(self.num_exits, timed)

    def __call__(self, images_BCHW: Images, *, tally: Tally | None = None) -> Answers:
        """Answers for images `[B, channels, height, width]`, B from 0 up; what is spent is added to `tally`.

        Here and in the other methods, images are a tensor of floats, a NumPy array, or a list of either.

        Raises:
            UsageError: Anything else, or images of another size than the network's.
        """
        images = self._read(images_BCHW)
        return self.runs(images.shape[0])(images, tally)  # counting changes nothing; len of a tensor takes longer

    def _read(self, images_BCHW: Images) -> Tensor:
        """A batch as one tensor. The first one is looked at: prepared otherwise than in training, it is warned of."""
        images = as_images(images_BCHW, self.network)
        if not self._looked and len(images):
            self._looked = True
            if self.network.inputs is not None:
                warn_of_odd(images, self.network.inputs)
        return images

    @torch.inference_mode()
    def _in_one(
        self,
        single: Single,
        segments: Sequence[tuple[int, int]],
        images_BCHW: Tensor,
        tally: Tally | None = None,
    ) -> Answers:
        """One image by a model with the exits inside; its time counts for the exit that answers alone."""
        with quiet_torch(self.program):
            started = now(self.program, tally)
            answers = single(images_BCHW)
            if answers.confidence_B.isnan():  # what its label is, libraries differ in
                return self._adaptive(images_BCHW, tally)
            if tally is not None:
                exit = int(answers.exits_B)
                for first, last in segments:
                    if last <= exit:
                        begun = started if last == exit else now(self.program, tally)
                        note(self.program, tally, first, last, 1, begun)
                tally.exits_K[exit] += 1
            return answers

    @torch.inference_mode()
    def _adaptive(self, images_BCHW: Tensor, tally: Tally | None = None) -> Answers:
        with quiet_torch(self.program):
            num_images = len(images_BCHW)
            plan = self.plan_for(num_images)
            carry = self.program.enter(images_BCHW)
            waiting = [Rows(torch.arange(num_images, device=carry[0].device), carry)]
            left: list[Left] = []
            for first, last in self._segments[plan]:
                pieces, waiting = _pieces(waiting, plan, first), []
                for piece in pieces:
                    gone, onward = self.advance(first, last, piece, tally)
                    left += [] if gone is None else [gone]
                    waiting += [] if onward is None else [onward]
                if not waiting:
                    break
            answers = in_order(left, num_images)
            if tally is not None:
                tally.answer(answers.exits_B)
            return answers

    def segments(self, plan: Plan) -> tuple[tuple[int, int], ...]:
        """First and last stages of what runs in one piece under a plan: from one exit that is asked to the next."""
        return segments(self.asks(plan))

    def advance(self, first: int, last: int, rows: Rows, tally: Tally | None = None) -> tuple[Left | None, Rows | None]:
        """Run stages `first` to `last` and exit `last`: those that leave there, and those that go on."""
        return self.divide(last, *self.reach(first, last, rows, tally))

    def reach(self, first: int, last: int, rows: Rows, tally: Tally | None = None) -> tuple[Rows, Asked]:
        """Run stages `first` to `last` and exit `last`: the same images behind them, and what the exit says of them."""
        started = now(self.program, tally)
        logits_BC, carry = self.program.segment(first, last, rows.carry)
        note(self.program, tally, first, last, rows.run, started)
        assert logits_BC is not None
        log_probs_BN = self.policy.log_probs(last, rows.of(logits_BC), self.program.num_classes)
        confidence_B, state = self.policy.measure.confidence(log_probs_BN, rows.state)
        asked = Asked(log_probs_BN.argmax(-1), confidence_B, self.policy.takes(last, confidence_B))
        return Rows(rows.ids_B, carry, state, rows.places_B), asked

    def divide(self, k: int, rows: Rows, asked: Asked) -> tuple[Left | None, Rows | None]:
        """Those of the images that leave at exit k, and those that go on."""
        labels_B, confidence_B, takes_B = asked
        leaving = len(rows) if k == self.num_exits - 1 else int(takes_B.count_nonzero())
        if leaving == 0:
            return None, rows
        if leaving == len(rows):
            return Left(rows.ids_B, Answers(labels_B, torch.full_like(labels_B, k), confidence_B)), None
        go_G, stay_B = (mask_B.nonzero().squeeze(1) for mask_B in (takes_B, ~takes_B))
        labels_G = labels_B[go_G]
        answers = Answers(labels_G, torch.full_like(labels_G, k), confidence_B[go_G])
        return Left(rows.ids_B[go_G], answers), rows.keep(stay_B)

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        self.program.wait()

    @torch.inference_mode()
    def nothing(self) -> Answers:
        """The answers for no images: on the program's device, in the types of others."""
        logits_BC = torch.empty(0, self.program.num_classes, dtype=self.program.dtype, device=self.program.device)
        confidence_B, _ = self.policy.measure.confidence(self.policy.log_probs(0, logits_BC, self.program.num_classes))
        labels_B, exits_B = (torch.empty(0, dtype=torch.int64, device=confidence_B.device) for _ in range(2))
        return Answers(labels_B, exits_B, confidence_B)


def _pieces(waiting: list[Rows], plan: Plan, k: int) -> list[Rows]:
    """What stage k is given, piece by piece: compacted where the plan says so, and never more than a chunk."""
    most = plan.chunk
    if len(waiting) == 1 and (most is None or waiting[0].run <= most):
        rows = waiting[0]
        drops = len(rows) < rows.run and (plan.compacts is None or k - 1 in plan.compacts)
        return [rows.drop(plan.rows(len(rows)))] if drops else waiting
    together = join(waiting)
    pieces = [together] if most is None else together.split(most)
    return [piece.compact(max(len(piece), plan.rows(len(piece)))) for piece in pieces]
