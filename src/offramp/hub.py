"""Finished runs on the Hugging Face hub, or in folders like those there (extra `hub`).

What is saved is a run's folder without the machine it was made on, so every command works on it. To read it is to read
a stranger's run: `trust` decides which code it may name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp.errors import OfframpError, UsageError, first_line, needs
from offramp.evaluation import Certificate
from offramp.files import CARD, RunFolder, load
from offramp.files.evaluation import current
from offramp.json_files import read, write
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.registry import called
from offramp.storage import write_atomically

with needs("The client of the hub", "hub"):
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

_FILES = ("weights", "input", "origin", "split", "metrics", "policy", "evaluation")  # beside config.json, as they are


class Pretrained(ModelHubMixin, library_name="offramp", tags=["early-exit", "image-classification"]):
    """A finished run, to be handed on: `save_pretrained(folder)`, `push_to_hub(name)`, `from_pretrained(either)`.

    Arguments are those of `offramp.load`, which makes `network`; `policy` is the run's own, or None.
    """

    def __init__(self, run: str | Path, *, into: EarlyExitNet | None = None, allow_code: Sequence[str] = ()) -> None:
        self.folder = RunFolder(run, allow_code)
        self.network = load(run, into, allow_code=allow_code)
        self.policy = Policy.load(self.folder.policy) if self.folder.policy.is_file() else None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path, *, into: EarlyExitNet | None = None, allow_code: Sequence[str] = (), **settings: Any
    ) -> "Pretrained":
        """What `save_pretrained` or `push_to_hub` wrote: a folder, or a name on the hub such as `me/garments`.

        `settings` are of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`, `local_files_only`.
        The mixin's own would take arguments that are not given from `config.json`, a stranger's `allow_code` too.
        """
        if Path(name).expanduser().is_dir():
            return cls(name, into=into, allow_code=allow_code)
        own = RunFolder(name)
        wanted = [own.config.name, *(getattr(own, file).name for file in _FILES)]
        try:
            folder = snapshot_download(str(name), allow_patterns=wanted, **settings)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise OfframpError(
                f"{name} is no folder here, and the hub does not give it: {first_line(error)}."
            ) from error
        return cls(folder, into=into, allow_code=allow_code)

    def save_pretrained(self, save_directory: str | Path, **more: Any) -> str | None:
        """Write the run and its card into a new folder; see `ModelHubMixin.save_pretrained`."""
        folder = Path(save_directory).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not empty; choose a folder that does not exist yet.")
        return super().save_pretrained(folder, **more)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = self.folder.read_config().written
        if config["data"] is not None:
            config = {**config, "data": {**config["data"], "root": None}}  # a path of this machine
        write(save_directory / self.folder.config.name, config, indent=2)
        for file in (getattr(self.folder, name) for name in _FILES):
            if file.is_file():
                write_atomically(save_directory / file.name, file.read_bytes())

    def generate_model_card(self, *, license: str | None = None) -> ModelCard:
        """The card: data, exits, accuracies, certificate in words, licence; `license` is that of these weights."""
        known = ModelCardData(
            license=license,
            library_name="offramp",
            tags=self._hub_mixin_info.model_card_data.tags,
            pipeline_tag="image-classification",
        )
        text = [f"---\n{known.to_yaml()}\n---", f"# {self._title()}", *self._about(license), _USE]
        return ModelCard("\n\n".join(text) + "\n")

    def _title(self) -> str:
        config = self.folder.read_config()
        data = "images made by hand" if config.data is None else str(config.data.source)
        method = called(config.written["objective"])
        return f"{self.network.num_exits} exits, {method}, trained on {data}"

    def _about(self, license: str | None) -> list[str]:
        origin, card = self.network.origin or {}, self.folder.path / CARD
        about = [self._accuracies()]
        certificate = Certificate.of(self.policy) if self.policy else None
        about.append(f"**Certified.** {certificate}" if certificate else "Nothing is certified of its policy.")
        if card.is_file():
            data = read(card, dict[str, Any])["data"]
            about.append(f"**Data.** {data['about']} {data['licence']}; {data['source']}")
        if origin.get("model"):
            about.append(f"**Trunk.** {origin['model']}, licence: {origin.get('licence') or 'not known'}.")
        return [*about, f"**Licence of the weights.** {license or 'Not said.'}"]

    def _accuracies(self) -> str:
        evaluation = current(self.folder)
        if evaluation is None:
            return "It was not evaluated: `offramp evaluate` measures every exit."
        last = evaluation.exits[-1].operations
        rows = [
            f"| {k} | {one.top1:.2f} % | {one.operations / last:.1%} |" for k, one in enumerate(evaluation.exits, 1)
        ]
        images = "" if evaluation.images is None else f" on {evaluation.images:,} test images of {evaluation.data}"
        head = f"| exit | accuracy{images} | operations |\n|---|---|---|"
        return "\n".join([head, *rows])


_USE = """```python
from offramp.hub import Pretrained

run = Pretrained.from_pretrained("this folder, or its name on the hub")
run.network, run.policy
```"""
