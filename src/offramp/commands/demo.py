"""`offramp demo`: a page that shows images leave early, as a folder for any static host."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.commands.options import Computes, File, Folder, OnRun, in_threads
from offramp.errors import OfframpError, UsageError
from offramp.terminal import escaped, say

if TYPE_CHECKING:
    from offramp.files import RunFolder


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OnRun, Computes):
    """Make a web page that runs the network in the browser, exit by exit.

    A folder for any static host: the page, the network as ONNX, and onnxruntime-web, which is downloaded once (33 MB).
    No server computes, and no image leaves the browser.
    """

    out: Annotated[str | Path, tyro.conf.arg(metavar="DIR")] = "site"
    """The folder to make."""
    policy: File = None
    """Thresholds, as offramp policy and offramp certify write them. Default: RUN/ladder.json, then RUN/policy.json."""
    runtime: Folder = None
    """Folder with the files of onnxruntime-web (its dist), instead of a download."""

    def main(self) -> None:
        site = demo(self)
        if self.json:
            print(dumps({"written": str(site.written), "bytes": site.bytes, "samples": site.samples}))
            return
        print(escaped(site.written))
        say(f"{site.bytes / 1e6:.1f} MB, for any static host. Here: python -m http.server --directory {site.written}")


@dataclass(frozen=True)
class Demo:
    """A folder that was made: where, how large, and with how many images to try."""

    written: Path
    bytes: int
    samples: int


@in_threads
def demo(options: DemoOptions) -> Demo:
    """Make the folder, whole or not at all: `index.html`, `model.json`, a file for each stage, samples, the runtime.

    Raises:
        UsageError: No run or an unfinished one; no policy, or one for another network; a folder that is not empty;
            what the room `export` refuses; a runtime that is not whole.
        OfframpError: The runtime cannot be downloaded, the folder not written.
    """
    from offramp.commands.open_run import inputs_of
    from offramp.costs import cost
    from offramp.export.levels import levels
    from offramp.export.stage_files import check_policy
    from offramp.export.tracing import need_onnx, parts
    from offramp.files import RunFolder, load
    from offramp.serve.card import Card, media_type
    from offramp.serve.messages import encode
    from offramp.serve.model import policies_of, served_of
    from offramp.serve.page import page
    from offramp.serve.web_runtime import web_runtime
    from offramp.storage import weights_hash

    target = Path(options.out).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} is there already. Remove it, or choose another folder with --out.")
    folder = RunFolder(options.run, options.allow_code)
    config = folder.read_config()
    _check_policy_is_there(options, folder)
    network = load(folder.path, allow_code=options.allow_code)
    weights = weights_hash(network.state_dict())
    ladder = policies_of(folder, options.policy, network.num_exits, weights)
    for policy in ladder:
        check_policy(network, policy)
    inputs = inputs_of(folder, config, options.root)
    inputs.check_network(network, folder.path)
    need_onnx()
    runtime = web_runtime(options.runtime)

    models = levels(parts(network, inputs.image_shape), network, ladder[0].measure, inputs)
    stages = {f"stage-{k}.onnx": model.SerializeToString(deterministic=True) for k, model in enumerate(models, 1)}
    card = Card.of(folder, config, inputs, weights)
    samples = {
        f"samples/{number}.{media_type(content).partition('/')[2]}": (content, label)
        for number, (content, label) in enumerate(card.samples)
    }
    spent = [count.operations for count in cost(network, inputs.image_shape).exits]
    shares_K = tuple(operations / max(spent[-1], 1) for operations in spent)
    model = {
        **loads(encode(card.model(served_of(folder, ladder, inputs, shares_K, weights)))),
        "stages": [{"file": name, "bytes": len(content)} for name, content in stages.items()],
        "samples": [{"url": name, "label": label} for name, (_, label) in samples.items()],
    }
    files = {
        "index.html": page("local").encode(),
        "model.json": dumps(model, ensure_ascii=False).encode(),
        **stages,
        **{name: content for name, (content, _) in samples.items()},
        **{f"runtime/{name}": content for name, content in runtime.items()},
    }
    _write(target, files)
    return Demo(target, sum(map(len, files.values())), len(samples))


def _check_policy_is_there(options: DemoOptions, folder: "RunFolder") -> None:
    if options.policy is None and not folder.ladder.is_file() and not folder.policy.is_file():
        raise UsageError(
            f"{folder.path} has no policy.json, and the page has to know who leaves where: "
            f"`{folder.command('policy')}` or `{folder.command('certify')}` finds thresholds, --policy FILE gives some."
        )


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """A folder with files by their relative names, which takes the place of an empty one."""
    from offramp.storage import held_folder, sync_folder

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with held_folder(target.parent, target.name) as beside:
            for name, content in files.items():
                file = beside / "new" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            os.replace(beside / "new", target)
        sync_folder(target.parent)
    except OSError as error:
        raise OfframpError(f"{target} cannot be written: {error.strerror or error}.") from error
