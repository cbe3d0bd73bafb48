"""The page of a study, as HTML of one file and as Markdown: verdicts, tables, and every run behind them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from offramp.paper import answer, early_exits, statistics
from offramp.paper.cells import Cell, Table, anchor
from offramp.paper.claims import CLAIMS
from offramp.paper.experiments import ALL, EXPERIMENTS, Experiment
from offramp.paper.identity import command, in_form, run_hash, run_name
from offramp.paper.judging import CLOSE, judge, judge_numbers
from offramp.paper.manifest import MadeBy, Manifest
from offramp.paper.plots import draw
from offramp.paper.results import Results, manifest_of, measured
from offramp.paper.study import Study, distinct
from offramp.paper.tables import claims_table, not_run, tables
from offramp.show import figures
from offramp.show.page import inline_svg, markdown_row, page
from offramp.storage import write_atomically

HOW_TO_READ = (
    "Verdicts are about differences taken seed by seed: agrees and disagrees mean that the 95 % interval lies on "
    "one side. Each interval stands for itself; of twenty, one misses by chance. A single seed resolves nothing. What "
    "is said of all exits (or all but one) agrees by the interval of each; it disagrees where an exit (or two) loses "
    "by intervals that share the error between all exits, because the worst is looked for among them; shown is the "
    "exit that gains least. That some exits gain and others lose agrees by such shared intervals, and disagrees where "
    "all lie on one side, each by its own; shown is the mean over exits. The deviation of accuracies is taken for no "
    "less than the sampling error that their difference has at least on the test images."
)

HOW_NUMBERS_ARE_JUDGED = (
    f"Agrees: the 90 % interval of our mean over exits less the printed one lies within ±{CLOSE} points (two one-sided "
    "tests at 5 % each); disagrees: it lies outside. Half a point is more than the paper's own repeats of one "
    "configuration lie apart (up to 0.27, Tables 5 and 8 against Table 1), and less than half of what dynamic training "
    "gains there (1.15); about smaller gains these verdicts say nothing. The spread of five printed runs is pooled "
    "with ours; a single printed run is taken to spread like ours, and often cannot be told."
)

OUR_RUNS_ALONE = (
    "Our runs alone: the paper’s points were never published as data. Lines are means over seeds, bands reach from the "
    "lowest seed to the highest."
)

EQUAL_BYTES = (
    "Equal bytes need the same number of threads and the same form of training, which the commands name as they were "
    "in the first run listed, and the same device and versions, which stand with each run."
)

_VERSIONS = {
    "offramp": "offramp",
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "NumPy",
    "python": "Python",
}


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Attributes:
        answer: What the runs say, where it is a comparison of our own.
        expect: What the paper leads one to expect, and what is a choice of ours; in a line of its own what is missing.
        plot: Its figure, as an element of the page.
        caption: What is said under it.
        beside: The figure in a file of its own, for Markdown: its name and content.
        no_plot: Why there is none although there should be.
    """

    name: str
    title: str
    answer: tuple[str, ...]
    expect: str
    tables: tuple[Table, ...]
    plot: Markup | None = None
    caption: str = ""
    beside: tuple[str, bytes] | None = None
    no_plot: str = ""


@dataclass(frozen=True)
class RunsOfRow:
    """A row's runs, as the page lists them: of each seed its name, where its manifest is, and what that says.

    `command` trains seed 0 by hand, with the threads and the form of the first run that is there.
    """

    anchor: str
    title: str
    command: str
    runs: tuple[tuple[str, str, str], ...]


def write(study: Study) -> list[Path]:
    """Write DIR/NAME.html and DIR/NAME.md of what is finished, and the figures of the latter; return all paths."""
    manifests = study.completed(study.manifests())
    results = measured(study.experiments, study.seeds, manifests)
    verdicts = _verdicts(study, results)
    runs = _runs(study, manifests)
    html, text = study.out / f"{study.title}.html", study.out / f"{study.title}.md"
    sections = [_section(experiment, results, study) for experiment in study.experiments]
    head = _head(study, manifests)
    content = page(
        "reproduce.html.j2",
        title=head[0],
        lead=head[1:],
        papers=study.scale.comparable,
        verdicts=verdicts,
        sections=sections,
        runs=runs,
        equal_bytes=EQUAL_BYTES,
    )
    write_atomically(html, content.encode())
    write_atomically(text, _markdown(head, verdicts, sections, runs).encode())
    drawn = [section.beside for section in sections if section.beside]
    for name, content_of_figure in drawn:
        write_atomically(study.out / name, content_of_figure)
    return [html, text, *(study.out / name for name, _ in drawn)]


def _head(study: Study, manifests: Mapping[str, Manifest]) -> list[str]:
    """The title, what data this is, and how far the study is."""
    wanted = len(distinct(study.experiments)) * len(study.seeds)
    done = study.done(manifests)
    names = [experiment.name for experiment in study.experiments]
    shown = "All tables and figures" if ALL in study.names else ", ".join(names).capitalize()
    lines = [
        f"{shown}{', some rows' if study.left_out else ''}, scale {study.scale.name}",
        study.scale.about,
        f"{done} of {wanted} runs are done; {_seeds(study.seeds)}. Reported is the last epoch, on the test set, "
        "unless a row or a table says otherwise.",
    ]
    whole = [name for name in study.left_out if name not in names]
    lines += [f"Left out of {name}: {'; '.join(study.left_out[name])}." for name in study.left_out if name in names]
    lines += [f"Left out whole: {', '.join(whole)}."] if whole else []
    hidden = _finished_seeds(study, manifests)
    if hidden:
        lines.append(f"Shown is only {_seeds(study.seeds)}; runs of {_seeds(hidden)} are done, too.")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _finished_seeds(study: Study, manifests: Mapping[str, Manifest]) -> list[int]:
    """Of which seeds runs are done that the page does not show."""
    others = {manifest.file.seed for manifest in manifests.values()} - set(study.seeds)
    rows = distinct(study.experiments)
    return [seed for seed in sorted(others) if any(run_hash(row.with_seed(seed)) in manifests for row in rows)]


def _verdicts(study: Study, results: Results) -> list[Table]:
    scale = study.scale
    if scale.comparable:
        note = HOW_NUMBERS_ARE_JUDGED
    elif scale.papers:
        note = f"These are numbers of the paper's recipe, and ours are of {scale.factor} times its epochs."
    else:
        note = "These are numbers on the paper's data, and ours are of other data."
    kinds_of_claim = (
        ("What the paper says", judge(CLAIMS, results, papers=scale.papers), statistics.CONFIDENCE, HOW_TO_READ),
        ("What the paper printed", judge_numbers(study.experiments, results), statistics.EQUIVALENCE, note),
    )
    anchors = {
        (experiment.name, row.label): anchor(row)
        for experiment in study.experiments
        for row in experiment.rows
        if results.of(experiment.name, row.label)
    }
    return [
        claims_table(title, judged, anchors, unlike=scale.unlike, confidence=confidence, note=explained)
        for title, judged, confidence, explained in kinds_of_claim
        if judged
    ]


def _section(experiment: Experiment, results: Results, study: Study) -> Section:
    about = " ".join((EXPERIMENTS[experiment.name].__doc__ or "").split())
    expect = (
        f"The paper: {about}" if experiment.name.startswith(("table", "figure")) else about
    )  # leagues and our own study are not the paper's
    missing = not_run(experiment, results)
    if missing:
        expect += f"\n\nNot run ({_seeds(study.seeds)}): {'; '.join(missing)}."
    plot, beside, no_plot = None, None, ""
    if experiment.shows in ("threshold", "budgeted") or early_exits.shown(experiment):
        if figures.available():
            with figures.style():
                drawn = draw(experiment, results)
                if drawn is not None:
                    plot = inline_svg(drawn, experiment.name)
                    beside = (f"{study.title}-{experiment.name}.svg", figures.render(drawn, "svg", experiment.name))
        else:
            no_plot = figures.HOW_TO_GET_IT
    title = f"{experiment.title}, {study.scale.unlike}" if study.scale.unlike else experiment.title
    caption = f"Measured {study.scale.unlike}. " if study.scale.unlike else ""
    caption += early_exits.QUESTION if early_exits.shown(experiment) else OUR_RUNS_ALONE
    answers = answer.sentences(experiment, results) if early_exits.shown(experiment) else ()
    return Section(
        name=experiment.name,
        title=title,
        answer=answers,
        expect=expect,
        tables=tuple(tables(experiment, results)),
        plot=plot,
        caption=caption,
        beside=beside,
        no_plot=no_plot,
    )


def _runs(study: Study, manifests: Mapping[str, Manifest]) -> list[RunsOfRow]:
    """Every distinct configuration of which something was run, with its command and manifests."""
    labels: dict[str, list[str]] = {}
    for experiment in study.experiments:
        for row in experiment.rows:
            labels.setdefault(anchor(row), []).append(f"{experiment.name}: {row.label}")
    listed = []
    for row in distinct(study.experiments):
        runs = []
        for seed in study.seeds:
            run = row.with_seed(seed)
            manifest = manifest_of(row, seed, manifests)
            where = "" if manifest is None else Path(os.path.relpath(manifest.path, study.out)).as_posix()
            runs.append((run_name(run), where, "missing" if manifest is None else _facts(manifest)))
        if not any(where for _, where, _ in runs):
            continue
        title = "; ".join(labels[anchor(row)])
        start = next(m for seed in study.seeds if (m := manifest_of(row, seed, manifests))).file.made_by
        line = command(in_form(row.run, start.form or "auto"), f"runs/{run_name(row.run)}")
        listed.append(RunsOfRow(anchor(row), title, f"OMP_NUM_THREADS={start.threads} {line}", tuple(runs)))
    return listed


def _facts(manifest: Manifest) -> str:
    """Where and with what a run was made, and the hashes of what went in and came out."""
    file = manifest.file
    git, images = file.made_by.git, file.images
    sentences = [_where(file.made_by)]
    if file.starts:
        first, *later = map(_where, file.starts)
        sentences = [f"begun on {first}", *(f"continued elsewhere, on {where}" for where in later)]
    if git:
        changes = ", with changes" if git.changed else ""
        sentences.append(f"started in a checkout of commit {git.commit[:10]}{changes}")
    sentences.append(f"training images {images.train[:10]}, test {images.test[:10]}, weights {file.weights[:10]}")
    return "; ".join(sentences)


def _where(start: MadeBy) -> str:
    versions = [f"{name} {version}" for key, name in _VERSIONS.items() if (version := getattr(start, key))]
    threads = f"{start.threads} thread{'s' if start.threads != 1 else ''}"
    form = [f"form {start.form}"] if start.form else []
    return ", ".join([start.device_name, threads, *form, *versions])


def _markdown(
    head: Sequence[str], verdicts: Sequence[Table], sections: Sequence[Section], runs: Sequence[RunsOfRow]
) -> str:
    lines = [f"# {head[0]}", "", *(f"{line}\n" for line in head[1:])]
    if verdicts:
        lines += ["## Verdicts", "", *(line for table in verdicts for line in _table(table))]
    for section in sections:
        lines += [f"## {section.name}: {section.title}", ""]
        lines += [line for sentence in section.answer for line in (sentence, "")]
        lines += [section.expect, ""]
        if section.beside:
            lines += [f"![{section.caption}]({section.beside[0]})", ""]
        lines += [line for table in section.tables for line in _table(table)]
    lines += ["## Runs", "", EQUAL_BYTES, ""]
    for row in runs:
        lines += [f'<a id="{row.anchor}"></a>', f"**{row.title}**", "", f"    {row.command}", ""]
        for name, where, facts in row.runs:
            lines.append(f"- {f'[{name}]({where})' if where else name}: {facts}")
        lines.append("")
    return "\n".join(lines)


def _table(table: Table) -> list[str]:
    cells = [[row[0], *(Cell(cell.text, rows=cell.rows) for cell in row[1:])] for row in table.rows]
    rows = [markdown_row(map(_text, row)) for row in cells]
    ruler = "|" + "---|" * len(table.head)
    return [f"**{table.title}.** {table.note}", "", markdown_row(table.head), ruler, *rows, ""]


def _text(cell: Cell) -> str:
    """In Markdown the first cell of a row alone leads to its runs, for all of them."""
    rows = ", ".join(f"[{name}](#{to})" for name, to in cell.rows)
    return (cell.text if cell.to is None else f"[{cell.text}](#{cell.to})") + (f"\nruns: {rows}" if rows else "")
