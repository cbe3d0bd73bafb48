"""The site is built in strict mode; every link and anchor in it leads somewhere; every public name is in it."""

import importlib
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import offramp

pytest.importorskip("zensical")
ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str | None] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name in ("id", "name")}
        self.links += [value for name, value in attrs if name in ("href", "src") and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for part in ("docs", "src"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = path
            if address.path:
                start = site if address.path.startswith("/") else path.parent
                target = (start / unquote(address.path).lstrip("/")).resolve()
            if target.is_dir():
                target /= "index.html"
            ids = pages[target].ids if target in pages else set()
            if not target.exists() or (address.fragment and unquote(address.fragment) not in ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


ROOMS = [name for name in offramp.__all__ if (Path(offramp.__file__).parent / name / "__init__.py").is_file()]


@pytest.mark.parametrize("module", ["offramp", *(f"offramp.{room}" for room in ROOMS)])
def test_every_public_name_is_described(module: str, pages: dict[Path, Page]) -> None:
    described = set().union(*(page.ids for page in pages.values()))
    names = set(importlib.import_module(module).__all__) - set(ROOMS)
    # A function of its module's name stands under both.
    assert not [name for name in names if not {f"{module}.{name}", f"{module}.{name}.{name}"} & described]
