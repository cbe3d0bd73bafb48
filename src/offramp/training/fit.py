"""Training a network on a data set into a run's folder; starting the same again continues."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from offramp import backbones, data, objectives, processes, rules
from offramp.backbones.attached.zoo import trained_on
from offramp.backbones.foreign import start_from
from offramp.certificate import Promise
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.data import Given, HeldOutGiven, Split
from offramp.data.files import at_most_twenty
from offramp.devices import device_named, with_kernels, with_threads
from offramp.errors import UsageError
from offramp.files import Epoch, RunFolder, keep_asked, load
from offramp.json_files import write
from offramp.network import EarlyExitNet
from offramp.objectives import Objective
from offramp.rules import TrainingRule, Workbench
from offramp.terminal import display, say
from offramp.training import environment
from offramp.training.callbacks import Callback, called, of_settings
from offramp.training.features import Features, describe_size, planned
from offramp.training.form import Compiled, Form, form_of
from offramp.training.job import Job
from offramp.training.loop import Loop
from offramp.training.monitor import Placement
from offramp.training.progress import check_readable
from offramp.training.run_lock import holds_another, is_claimed, locked
from offramp.training.splits import Unaugmented
from offramp.training.trunk import frozen, parameter_groups

CERTIFIABLE = math.ceil(math.log(Promise().level) / math.log(1 - Promise().risk))
"""Images without a loss that prove the usual promise of `offramp certify`."""

SMALL = 5_000
"""Fewer images than this to train on are few for a network from scratch."""


def train(run: Run, out: str | Path, *, overwrite: bool = False) -> EarlyExitNet:
    """Build everything that `run` names, and `fit` it into the folder `out`."""
    objective = objectives.build(run.objective)
    rule = rules.build(run.rule)
    train_split, val, test = data.load(_for_the_trunk(run))
    torch.manual_seed(run.training.seed)  # of the initial weights
    network = backbones.build(
        run.network,
        num_classes=train_split.num_classes,
        image_shape=train_split.image_shape,
        num_images=len(train_split),
        damping=objective.damping_neuron == "required",
    )
    trained = fit(
        network, objective, train_split, val, run.training, out=out, rule=rule, test=test, overwrite=overwrite
    )
    if processes.rank() == 0:
        keep_asked(RunFolder(out), run, train_split.home)
    return trained


def _for_the_trunk(run: Run) -> DataConfig:
    """The data with their images as those that a library's trained trunk knows, but for what `run` says of them.

    Weights may be those of a run as well, which stand in its folder, and were trained on that run's images.
    """
    source, init = run.data.source, run.training.init
    trained = run.network.args.get("pretrained") or (init is not None and not Path(init).expanduser().is_dir())
    if not trained or not (source.name == "imagenet" or source.name.startswith("folder:")):
        return run.data
    expected = {key: value for key, value in trained_on(run.network).items() if key not in source.args}
    if expected:
        settings = ", ".join(f"{key}={value}" for key, value in expected.items())
        _say(f"Images are prepared as those that {run.network.name} was trained on: {settings}.")
    return replace(run.data, source=Spec(source.name, {**source.args, **expected}))


def fit(
    network: EarlyExitNet,
    objective: Objective,
    train: Given,
    val: HeldOutGiven = None,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    rule: TrainingRule | None = None,
    test: Given | None = None,
    callbacks: Sequence[Callback] = (),
    overwrite: bool = False,
) -> EarlyExitNet:
    """Train `network`, keep everything in the folder `out`, and return the network, in evaluation mode and on the CPU.

    Starting the same again continues where the last checkpoint stands, to the very same weights (one process, CPU,
    same machine and number of threads). A finished run is loaded and returned. Under torchrun the processes share
    each batch. Threads and a GPU's kernels are as before when it returns.

    Args:
        network: Any `EarlyExitNet`; with a damping neuron where the objective needs one.
        objective: The loss.
        train: The images to train on: a `Split`, a torch `Dataset` or a `DataLoader` (see `offramp.data.from_torch`).
        val: Held-out images; every epoch is watched on `val.search`, and on the training images where there are none.
            A pair of these, or one Dataset or DataLoader that is halved into them: see `offramp.data.held_out`.
        config: How to train. Default: the paper's recipe for CIFAR-100.
        out: The run's folder. None: nothing is kept, and a training that is stopped cannot be continued.
        rule: What happens to a batch; default: one backward pass and one optimiser step.
        test: Images for afterwards. Nothing is learned from them; that all can be read is checked before it begins.
        callbacks: What watches the training, besides what `config` asks for.
        overwrite: Remove a run of another configuration that the folder holds. Of the same one, it goes on as ever.

    Raises:
        UsageError: What does not fit together, or a folder that holds something else.
        OfframpError: A loss that is not finite, a disk that is full, checkpoints that are all damaged.
    """
    config = config or TrainConfig()
    classes = network.num_classes
    images = data.from_torch(train, "torch/train", classes, training=True)
    images = images if config.augment else Unaugmented(images)
    job = Job(network, objective, images, data.held_out(val, classes), config, rule or rules.Standard())
    parts = [images, *job.val.splits(), *([] if test is None else [data.from_torch(test, "torch/test", classes)])]
    with display(), with_threads(config.threads), _together(config.device) as device, contextlib.ExitStack() as held:
        folder = _folder(out, config, held)
        _check_outside(folder, parts)
        callbacks = [*callbacks, *of_settings(config, folder)]
        job.check()
        return _train_or_load(folder, job, parts, device, callbacks, overwrite, held)


def _train_or_load(
    folder: RunFolder,
    job: Job,
    parts: Sequence[Split],
    device: torch.device,
    callbacks: Sequence[Callback],
    overwrite: bool,
    held: contextlib.ExitStack,
) -> EarlyExitNet:
    """Begin the run, continue it, or load what it ended with; `held` is left when the training ends."""
    network, config = job.network, job.config
    anew = overwrite and holds_another(folder, job.describe())
    if anew:
        _check_not_needed(folder, job)
    finished = folder.weights.is_file() and not anew
    begins = anew or not is_claimed(folder)
    if begins:
        check_readable(parts)
        if left_out := job.val.division.get("left_out"):
            _say("\n  ".join(at_most_twenty(left_out, "are left out")))
    if config.init is not None and begins:
        _say(start_from(network, config.init))
    if config.freeze_trunk:
        _say(_of_unknown_trunk(network, config) if begins else None)
        held.enter_context(frozen(network))
    place = Placement(device, config.channels_last)
    network.to(device=device, memory_format=place.layout)  # type: ignore[call-overload]
    network.inputs = job.train.inputs()
    features, why_not = planned(job)
    form = Form("plain")
    if not finished:
        form = form_of(job, device, heads_alone=features is not None).checked()
    held.enter_context(_locked_by_the_first(folder, job, device, begins, form, overwrite))
    if folder.weights.is_file():
        _say(f"{folder.path} is finished; nothing to do.")
        return load(folder.path, into=network).cpu()
    if why_not is not None:
        _say(f"The trunk is run in every epoch: {why_not}.")
    held.enter_context(with_kernels(device, deterministic=config.deterministic))
    return _train_in(folder, job, place, form, features, callbacks)


def _folder(out: str | Path | None, config: TrainConfig, held: contextlib.ExitStack) -> RunFolder:
    """The run's folder; without `out` one that is removed when the training ends."""
    if out is not None:
        return RunFolder(out)
    for name in ("keep_best", "tensorboard", "xray"):
        if getattr(config, name):
            raise UsageError(f"{name} is written into the run's folder, and there is none: pass out=FOLDER to fit.")
    _say("No folder is given: nothing is kept, and a training that is stopped cannot be continued.")
    return RunFolder(held.enter_context(tempfile.TemporaryDirectory(prefix="offramp-")), kept=False)


def _check_outside(folder: RunFolder, parts: Sequence[Split]) -> None:
    """Refuse a run's folder among the images: once it is there, they are others than those trained on."""
    place = Path(os.path.realpath(folder.path))
    for home in {part.home for part in parts if part.home is not None}:
        if place.is_relative_to(os.path.realpath(home)):
            raise UsageError(
                f"{folder.path} lies in {home}, the folder of the images, and would change the data set. Choose a "
                "folder outside."
            )


def _of_unknown_trunk(network: EarlyExitNet, config: TrainConfig) -> str | None:
    """What is to be said of a frozen trunk that may be random."""
    origin = network.origin or {}
    if config.init is not None or origin.get("weights") or origin.get("run"):
        return None
    return "The trunk stays as it is, and nothing says that it was trained; --init gives it weights."


def _check_not_needed(folder: RunFolder, job: Job) -> None:
    """Refuse to remove a run that the new one begins with."""
    for through, path in job.begun_with().items():
        needed = Path(os.path.realpath(Path(str(path)).expanduser()))
        if path is not None and needed.is_relative_to(os.path.realpath(folder.path)):
            raise UsageError(
                f"{folder.path} cannot be overwritten: {path} in it is needed ({through}). Choose another folder."
            )


def _train_in(
    folder: RunFolder,
    job: Job,
    place: Placement,
    form: Form,
    features: Features | None,
    callbacks: Sequence[Callback],
) -> EarlyExitNet:
    network, config = job.network, job.config
    _say(form.message)
    trained = network if features is None else features.heads
    share = processes.share_of(min(job.train.batch_size, len(job.train)))
    bench = Workbench(
        network=trained,
        forward=trained
        if form.name == "plain"
        else Compiled(trained, share.stop - share.start, _say, is_asked_for=form.is_asked_for),
        objective=job.objective,
        optimizer=_optimizer(trained, config),
        precision=config.precision,
    )
    job.rule.prepare(bench)
    _say(f"{folder.path}: {job.introduction(place.device)}" if folder.kept else job.introduction(place.device))
    _say(job.train.size_reason)
    _say(_second_best(job))
    _say(_too_few_to_certify(job.val.num_certify, len(job.train)))
    loop = Loop(folder, job, bench, place)
    if loop.restore(_say):
        _say(f"Continuing after {loop.epoch} epochs and {loop.step} steps of {folder.path}.")
        _note_changes(folder, form, config.form)
    if features is not None:
        _keep(features, loop, folder)
    callbacks = callbacks if processes.rank() == 0 else ()
    with called(callbacks, job.describe()):
        loop.run(callbacks)
        loop.write_final_weights()
    processes.wait_for_all()
    if processes.rank() == 0:
        done = f"Done: {folder.weights}. Next: {folder.command('evaluate')}" if folder.kept else "Done."
        _say(_exploded(folder.read_metrics()[-1], network, config) or done)
    return network.cpu().eval()


def _second_best(job: Job) -> str | None:
    """That a trained trunk would do better, of few images in files on which a network is trained from scratch."""
    origin = job.network.origin or {}
    if job.config.init is not None or origin.get("weights") or job.train.home is None or len(job.train) >= SMALL:
        return None
    return (
        f"Training from scratch on {len(job.train):,} images is the second best: exits on a trained network do better "
        "(--backbone timm/resnet18 pretrained=true --freeze-trunk, or weights in a file by --init)."
    )


def _too_few_to_certify(held_out: int, trained_on: int) -> str | None:
    """That a certificate cannot be had, and the split by which it could; nothing of a run that holds nothing out."""
    if not 0 < held_out < CERTIFIABLE:
        return None
    holdout = 2 * CERTIFIABLE
    way_out = f"--holdout {holdout} would do" if trained_on + 2 * held_out >= 2 * holdout else "it takes more images"
    return (
        f"{held_out} images are held out for certificates, too few for `offramp certify` with its usual promise, which "
        f"needs {CERTIFIABLE}: {way_out}."
    )


def _exploded(last: Epoch, network: EarlyExitNet, config: TrainConfig) -> str | None:
    """What to say where the last epoch has the loss and the accuracy of a network that learned nothing, or None."""
    loss, guessing = last.loss, network.num_exits * math.log(network.num_classes)
    best = max(last.search_top1 or last.train_top1 or (0.0,))
    if loss is None or loss < 2 * guessing or best > 150 / network.num_classes:
        return None
    return (
        f"Warning: the training has exploded: the loss of the last epoch is {loss:,.1f}, where guessing has "
        f"{guessing:.1f}, and the best exit is right in {best:.1f} %. Train anew, with a lower --lr than {config.lr:g}."
    )


def _keep(features: Features, loop: Loop, folder: RunFolder) -> None:
    """Let the loop read what the exits read of the images, in their place: of the trunk that it has restored."""
    splits = [loop.train] if loop.search is None else [loop.train, loop.search]
    number, size = sum(map(len, splits)), sum(map(features.size_of, splits))
    _say(f"What the exits read of {number:,} images is computed once and kept: {describe_size(size)}.")
    train, *search = (features.keep(split, loop.place, loop.bench.autocast, folder.path) for split in splits)
    loop.train, loop.search = train.on(loop.place.device), search[0].on(loop.place.device) if search else None
    loop.place = Placement(loop.place.device, channels_last=False)  # rows have no layout


def _note_changes(folder: RunFolder, form: Form, wanted: str) -> None:
    """The promise of equal bytes holds for the same form, threads and processes: say where these are others."""
    first = folder.read_starts()[0]
    began = "by an older offramp" if first.form is None else f"in form {first.form}"
    if (first.form or wanted) != form.name:
        _say(f"It was started {began} and goes on in form {form.name}: the weights will differ a little.")
    here = {
        "threads": (first.threads, torch.get_num_threads()),
        "processes": (first.processes, processes.world_size()),
    }
    for what, (before, now) in here.items():
        if before != now:
            _say(
                f"It was started with {before} {what} and goes on with {now}: the weights will differ from those of a "
                f"run with {before} or {now} all along."
            )


def _optimizer(network: EarlyExitNet, config: TrainConfig) -> torch.optim.Optimizer:
    # Fused: the only kind that can skip a step on the device (see Workbench.update), and the fastest.
    groups = parameter_groups(network, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


@contextmanager
def _locked_by_the_first(
    folder: RunFolder, job: Job, device: torch.device, begins: bool, form: Form, overwrite: bool
) -> Iterator[None]:
    """The first process locks the folder and writes what explains the run; the others wait until it has."""
    if processes.rank() != 0:
        processes.wait_for_all()
        yield
        return
    with locked(folder, job.describe(), overwrite=overwrite):
        if not folder.weights.is_file():
            folder.add_start(environment.describe(device) | {"form": form.name})
            write(folder.split, job.val.description(), indent=2)
            inputs = job.train.inputs()
            if inputs is not None:
                inputs.save(folder.input)
            if begins and (origin := job.origin()):
                write(folder.origin, origin, indent=2)
        processes.wait_for_all()
        yield


@contextmanager
def _together(wanted: str) -> Iterator[torch.device]:
    """This process's device, among the processes that torchrun started where it did: each its own GPU of a machine."""
    device = device_named(wanted)
    if device.type == "cuda":
        if device.index is None:
            device = device_named(f"cuda:{processes.from_environment('LOCAL_RANK', 0)}")
        torch.cuda.set_device(device)
    with processes.together("nccl" if device.type == "cuda" else "gloo"):
        yield device


def _say(text: str | None) -> None:
    if text is not None and processes.rank() == 0:
        say(text)
