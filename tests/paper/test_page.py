"""Pages from made-up manifests."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from offramp.paper.identity import run_name
from offramp.paper.page import write
from offramp.paper.scales import PAPER, POCKET
from offramp.paper.statistics import estimate
from offramp.paper.study import Study


class Links(HTMLParser):
    """Where a page leads, what stands there, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.to, self.ids, self.loads = [], set(), []

    def handle_starttag(self, tag, attributes) -> None:
        found = dict(attributes)
        if tag == "a":
            self.to.append(found["href"])
        if "id" in found:
            self.ids.add(found["id"])
        if tag in ("script", "img", "link", "iframe"):
            self.loads.append(tag)


def test_everything_at_once(study) -> None:
    made = study(POCKET, "all")
    html, text, *_ = write(made)
    assert (html.name, text.name) == ("all-pocket.html", "all-pocket.md")
    found = Links()
    found.feed(html.read_text())
    assert not found.loads  # one file, nothing fetched
    for to in found.to:  # every cell leads to its runs, every run to its manifest
        assert to[1:] in found.ids if to.startswith("#") else (made.out / to).is_file(), to
    assert (
        html.read_text().count("<svg") == 4
    )  # Figures 3 and 4, what early exits are worth, and the league on ImageNet
    for name in (experiment.name for experiment in made.experiments):
        assert name in found.ids
        assert f"## {name}: " in text.read_text()
    assert "176 of 176 runs are done; seeds 0, 1." in text.read_text()


@pytest.mark.usefixtures("undrawn")
def test_every_number_leads_to_its_runs(study) -> None:
    """Accuracies, differences, n, pairs, times, and what verdicts go by; the paper's own numbers have no runs here."""
    html, text, *_ = write(study(POCKET, "table1", "table2", "table5", "league", "figure4"))
    body = html.read_text()
    listed = {to for to in re.findall(r'<div id="(runs-\w+)">', body)}
    numbers = 0
    for title, table in re.findall(r"<h3>([^<]*)</h3>\s*<div[^>]*>\s*<table[^>]*>(.*?)</table>", body, re.DOTALL):
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("</thead>")[1], re.DOTALL):
            cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
            if title == "Published":
                continue
            if title.startswith("What the paper"):
                assert (": " in cells[3]) == ('<br>runs: <a href="#runs-' in cells[3]), cells
                said = [cells[3]] if cells[3] else []
            else:
                said = [cell for cell in cells if cell and cell != "–"]
                assert all(re.fullmatch(r'<a href="#runs-\w+">[^<]*</a>', cell) for cell in said), said
            numbers += len(said)
            assert set(re.findall(r'href="#([^"]*)"', row)) <= listed
    assert numbers > 300
    claim = next(line for line in text.read_text().splitlines() if line.startswith("| Dynamic training is better than"))
    assert re.search(r"<br>runs: \[table1: \+ Dynamic\]\(#runs-\w+\), \[table1: \+ Power-sqrt\]\(#runs-", claim)


def test_a_pocket_number_is_never_set_against_the_papers(study) -> None:
    _, text, *_ = write(study(POCKET, "table1", "table3"))
    page = text.read_text()
    assert "Ours less published" not in page
    assert "Other data, other networks: not comparable with anything of ours." in page
    assert (
        "| MSDNet, published | 61.826 ±0.675 | 64.922 ±0.620 | 67.998 ±0.505 | 71.212 ±0.320 | 73.600 ±0.595 |" in page
    )
    verdicts = re.findall(r"^\| .* \| (?:prose|table): [^|]* \| ([^|]*) \|", page, re.MULTILINE)
    assert verdicts
    for verdict in verdicts:
        assert verdict == "not comparable (other data)" or verdict.endswith(", on fashion-mnist")
    assert "the paper's own numbers" not in page


@pytest.mark.usefixtures("undrawn")
def test_every_table_and_figure_says_what_it_was_measured_on(study) -> None:
    """Copied off the page, "the CIFAR-10 setting" would pass for CIFAR-10."""
    html, text, *_ = write(study(POCKET, "table3", "table4", "table5", "figure3", "figure4"))
    page = text.read_text()
    notes = re.findall(r"^\*\*([^*]+)\.\*\* (.*)$", page.split("\n## table3")[1].split("\n## Runs")[0], re.MULTILINE)
    assert len(notes) > 10
    for title, note in notes:
        assert note.startswith("Printed in the paper, " if title == "Published" else "Measured on fashion-mnist. "), (
            title
        )
    titles = re.findall(r"^## (?:table|figure)\d: .*$", page, re.MULTILINE)
    assert all(title.endswith(", on fashion-mnist") for title in titles)
    found = [line for part in re.findall(r"^\| .* \| prose: .* \|$", page, re.MULTILINE) for line in part.split("<br>")]
    assert found
    assert all("on fashion-mnist" in line for line in found if not line.startswith("runs: "))
    body = html.read_text()
    assert body.count("<figcaption>Measured on fashion-mnist. ") == body.count("<svg") == 2
    ours = write(study(PAPER, "table3", "figure3"))
    assert not any("Measured" in path.read_text() for path in ours)


def test_published_numbers_have_the_digits_of_the_paper(study) -> None:
    """Binary halves would be rounded either way: 61.826 ± 0.675 to 61.83 ± 0.68, 75.874 to 75.87."""
    page = write(study(POCKET, "table1", "table5", "table8", seeds=1))[1].read_text()
    assert "| 75.316 ±0.425 | 75.874 ±0.545 | 70.107 ±0.144 |" in page
    assert (
        "| Damping loss, published | 61.53 (0.006) | 64.71 (0.008) | 68.22 (0.015) | 71.27 (0.028) | 73.76 (0.050) |"
        in page
    )
    assert "| MSDNet, published | 60.78 | 64.54 |" in page
    means = "The means are not printed there; they are taken of its numbers."
    table1, table8 = (page.split(f"## {name}: ")[1].split("## ")[0] for name in ("table1", "table8"))
    assert (means in table1, means in table8) == (False, True)


def test_another_recipe_is_not_other_data(study) -> None:
    _, text, *_ = write(study(PAPER.times(10), "table1", "table4", seeds=3))
    page = text.read_text()
    assert "other data" not in page.lower()
    assert "Ours less published" not in page
    assert "Ours have 10 times the epochs: not comparable with anything of ours." in page
    assert "table1: the printed means over exits of 5 rows | table: Table 1 | not comparable (another recipe) |" in page
    assert "ours are of 10 times its epochs" in page
    verdicts = re.findall(r"^\| .* \| prose: [^|]* \| ([^|]*) \|", page, re.MULTILINE)
    resolved = [verdict for verdict in verdicts if verdict.startswith(("agrees", "disagrees"))]
    assert resolved
    assert all(verdict.endswith(", with 10 times the epochs") for verdict in resolved)
    (claim,) = [line for line in page.splitlines() if line.startswith("| The gains on CIFAR-10 are smaller")]
    assert "not comparable" not in claim  # both data sets are there


def test_on_the_papers_data_differences_stand_with_intervals(study) -> None:
    _, text, *_ = write(study(PAPER, "table1"))
    page = text.read_text()
    after = page[page.index("Ours less published") :]
    # exit 1 of the first row: 70.00 and 70.01 less 61.826; std 0.00707 (1) pooled with 0.675 / 1.163 (4) is 0.519;
    # t(5) = 2.571, sqrt(1/2 + 1/5)
    assert "| +8.18 [+7.06, +9.30] |" in after
    assert "table1, MSDNet: 70.107 % on average over exits | table: Table 1 | disagrees |" in page
    assert "found, with 90 % intervals" in page


def test_rows_that_the_paper_copied_have_no_difference_to_them(study) -> None:
    page = write(study(PAPER, "table2"))[1].read_text()
    assert "| WPN, copied by the paper | 59.54 |" in page
    assert "WPN and DFS: copied there from their authors, who trained by another recipe." in page
    for row in ("WPN", "DFS"):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| table2, {row}: ")]
        assert line.endswith("copied from its authors | table: Table 2 | not comparable (another recipe) |  |")
    after = page[page.index("Ours less published") :]
    rows = [line[3 : line.index("]")] for line in after.split("## Runs")[0].splitlines() if line.startswith("| [")]
    assert rows == ["MSDNet", "Power-sqrt", "+ Dynamic"]


def test_the_papers_sum_over_exits_stands_beside_the_mean(study) -> None:
    """Made-up rows lie 0.1 apart at each of five exits; the paper's Δ is a sum as well."""
    page = write(study(POCKET, "table2"))[1].read_text()
    ours, theirs = (line for line in page.splitlines() if line.startswith("|  | exit 1"))
    assert "| mean | Δ: sum over exits less MSDNet's, paired | against MSDNet, paired |" in ours
    assert theirs.endswith("| mean | Δ: sum over exits less MSDNet's |")
    (dfs,) = [line for line in page.splitlines() if line.startswith("| [DFS]")]
    total, mean = (estimate([unit * 0.2] * 2, images=10_000, unit=unit).text() for unit in (5, 1))  # seeds are equal
    assert f"| {total} | {mean} |" in dfs
    assert "| +1.00 [" in dfs
    assert "| DFS, copied by the paper | 61.80 | 68.03 | 70.75 | 71.79 | 72.88 | 69.05 | +2.58 |" in page
    assert "Δ: " not in write(study(POCKET, "table6"))[1].read_text()


def test_means_spreads_times_and_paired_differences(study) -> None:
    _, text, *_ = write(study(POCKET, "table8"))
    rows = [line for line in text.read_text().splitlines() if line.startswith("| [Label smoothing]")]
    paired = estimate([0.1, 0.1], images=10_000).text()
    assert rows[0].endswith(f"| 73.10 ±0.01 (0.01) | {paired} | 2 | 2.0 min (×2.00) |")


def test_times_taken_otherwise_are_said_and_not_compared(study, manifest) -> None:
    made = study(POCKET, "table1")
    _, text, *_ = write(made)
    assert (
        "Times are of training alone (cpu, 1 thread, one run at a time by this command, as the manifests say)."
        in text.read_text()
    )
    fast = made.experiments[0].row("+ Dynamic")
    for seed in (0, 1):
        run = fast.with_seed(seed)
        one = manifest(run, [70.0] * 7, seconds=15.0, device="gpu", threads=4)
        one.save(made.out / "manifests" / f"{run_name(run)}.json")
    write(made)
    page = text.read_text()
    rows = {line[3 : line.index("]")]: line for line in page.splitlines() if line.startswith("| [")}
    assert rows["+ Dynamic"].endswith("| 2 | 15.0 s<br>gpu, 4 threads, one run at a time by this command |")
    assert rows["WPN"].endswith("| 2 | 2.0 min (×2.00)<br>cpu, 1 thread, one run at a time by this command |")
    (claim,) = [line for line in page.splitlines() if line.startswith("| Dynamic training takes less time")]
    assert claim.count("| not comparable (times of another device, or of other threads, form or jobs) |") == 1
    assert "in percent: not comparable" in claim


def test_times_beside_other_work_are_one_line(study, manifest) -> None:
    made = study(POCKET, "table1")
    for seed, seconds, threads in ((0, 15.0, 1), (1, 240.0, 2)):
        run = made.experiments[0].row("+ Dynamic").with_seed(seed)
        one = manifest(run, [70.0] * 7, seconds=seconds, threads=threads, load=9.0)
        one.save(made.out / "manifests" / f"{run_name(run)}.json")
    rows = [line for line in write(made)[1].read_text().splitlines() if line.startswith("| [+ Dynamic]")]
    assert rows[0].endswith("| 2 | 15.0 s to 4.0 min<br>taken in 2 ways, other work beside or not recorded |")


def test_the_head_says_what_is_left_out(study) -> None:
    """A page of some rows or seeds takes the place of the whole one: it has the same name."""
    whole = study(POCKET, "table3", "table8", seeds=3)
    _, text, *_ = write(whole)
    assert "Left out" not in text.read_text()
    assert "Shown is only" not in text.read_text()
    some = dataclasses.replace(whole, only=("MSDNet",), seeds=(1,))
    assert write(some)[1] == text
    head = text.read_text().split("## ")[0]
    assert head.startswith("# Table8, some rows, scale pocket\n")
    assert "Left out of table8: Label smoothing; Power-sqrt.\n" in head
    assert "Left out whole: table3.\n" in head
    assert "1 of 1 runs are done; seed 1." in head
    assert "Shown is only seed 1; runs of seeds 0, 2 are done, too.\n" in head


def test_rows_that_were_not_run_are_one_line(study) -> None:
    """What there is stays legible beside a league of which little is done."""
    made = study(POCKET, "league")
    rows = made.experiments[0].rows
    for path in (made.out / "manifests").iterdir():
        if path.stem not in {run_name(row.with_seed(1)) for row in rows[:3]}:
            path.unlink()
    html, text, *_ = write(made)
    assert f"\nNot run (seeds 0, 1): {'; '.join(row.label for row in rows[3:])}.\n" in text.read_text()
    for page in (html.read_text(), text.read_text()):
        assert page.count("missing") == 3  # seed 0 of the rows that are there
        assert page.count("offramp train") == 3
        assert page.count("DFS") == 2
    found = Links()
    found.feed(html.read_text())
    assert {to[1:] for to in found.to if to.startswith("#")} <= found.ids


def test_the_league_has_differences_by_group_of_exits(study, manifest) -> None:
    """Of the seeds that both have: early exits gain 1, 2 and 3 points (2 ± t(2) / sqrt(3)), the last two lose 1."""
    made = study(POCKET, "league", seeds=4, only=("cross-entropy", "damping", "damping, λ/√K"))
    cross_entropy, damping, smaller = made.experiments[0].rows[:3]

    def save(row, seed, top1) -> None:
        run = row.with_seed(seed)
        manifest(run, top1).save(made.out / "manifests" / f"{run_name(run)}.json")

    for seed in range(4):
        save(cross_entropy, seed, [60.0, 61.0, 62.0, 63.0, 64.0, 65.0, 66.0])
        gain = 1 + seed
        save(damping, seed, [60.0 + gain, 61.0 + gain, 62.0 + gain, 63.0, 64.0, 64.0, 65.0])
    (made.out / "manifests" / f"{run_name(damping.with_seed(3))}.json").unlink()
    for seed in (1, 2, 3):
        (made.out / "manifests" / f"{run_name(smaller.with_seed(seed))}.json").unlink()
    page = write(made)[1].read_text().split("**Early exits.**")[0]
    head = next(line for line in page.splitlines() if line.startswith("|  | exit 1"))
    names = [name.strip() for name in head.split("|")]
    rows = {line[3 : line.index("]")]: line.split("|") for line in page.splitlines() if line.startswith("| [")}

    def of(label: str, column: str) -> str:
        return rows[label][names.index(column)].strip()

    assert of("damping", "first three exits, paired") == "+2.00 [-0.48, +4.48]"
    assert (
        of("damping", "last two exits, paired") == estimate([-1.0] * 3, images=10_000).text() != "-1.00 [-1.00, -1.00]"
    )
    assert of("damping", "against cross-entropy, paired") == "+0.57 [-0.49, +1.64]"
    assert of("damping", "pairs") == "3"
    assert (of("damping, λ/√K", "pairs"), "[" in of("damping, λ/√K", "last two exits, paired")) == ("1", False)
    assert of("cross-entropy", "pairs") == ""
    assert "first three exits" not in write(study(POCKET, "table8"))[1].read_text()


def test_what_a_run_was_made_with(study, manifest) -> None:
    """The commit is that of the folder the command was given in, and says nothing where there were changes."""
    made = study(POCKET, "table8", seeds=1)
    run, other = (row.with_seed(0) for row in made.experiments[0].rows[:2])
    git = {"commit": "abcdef0123456789", "changed": True}
    manifest(run, [70.0] * 7, git=git, threads=3, form="compiled").save(
        made.out / "manifests" / f"{run_name(run)}.json"
    )
    starts = [{"device": "gpu", "threads": 4, "torch": "1"}, {"device": "cpu", "threads": 1, "torch": "2"}]
    manifest(other, [70.0] * 7, starts=starts).save(made.out / "manifests" / f"{run_name(other)}.json")
    _, text, *_ = write(made)
    facts = {line[3 : line.index("]")]: line for line in text.read_text().splitlines() if line.startswith("- [")}
    assert (
        "cpu, 3 threads, form compiled, offramp 0, torch 2, Python 3; "
        "started in a checkout of commit abcdef0123, with changes;" in facts[run_name(run)]
    )
    commands = [line.strip() for line in text.read_text().splitlines() if " offramp train " in line]
    assert [line.split(" ")[0] for line in commands] == [f"OMP_NUM_THREADS={threads}" for threads in (3, 1, 1)]
    assert [" --form compiled " in line for line in commands] == [True, False, False]
    assert "\nEqual bytes need the same number of threads" in text.read_text()
    assert "begun on gpu, 4 threads, torch 1; continued elsewhere, on cpu, 1 thread, torch 2;" in facts[run_name(other)]
    (row,) = [line for line in text.read_text().splitlines() if line.startswith("| [Label smoothing]")]
    assert "×" not in row  # a time of two machines
    assert "cpu, 1 thread, one run at a time by this command, begun elsewhere" in row


def test_times_beside_other_work_are_not_set_against_others(study, manifest) -> None:
    made = study(POCKET, "table8")
    for row in made.experiments[0].rows:
        for seed in (0, 1):
            run = row.with_seed(seed)
            manifest(run, [70.0] * 7, load=2.0).save(made.out / "manifests" / f"{run_name(run)}.json")
    page = write(made)[1].read_text()
    assert "(cpu, 1 thread, one run at a time by this command, other work beside, as the manifests say)" in page
    assert "×" not in page


@pytest.mark.usefixtures("undrawn")
def test_a_dear_first_exit_leaves_no_number_at_small_budgets(study, manifest) -> None:
    """Made-up runs whose cheapest point is half the operations: 30 and 40 % cannot be spent."""
    made = study(POCKET, "figure4", only=("cross-entropy", "WPN", "dynamic"))
    for number, row in enumerate(made.experiments[0].rows):
        for seed in (0, 1):
            run = row.with_seed(seed)
            one = manifest(run, [70.0] * 5, budgeted=[[250, 70.0 + number + seed / 10], [500, 75.0 + number]])
            one.save(made.out / "manifests" / f"{run_name(run)}.json")
    page = write(made)[1].read_text()
    (claim,) = [line for line in page.splitlines() if line.startswith("| In dynamic inference dynamic training")]
    assert claim.count("(budgets of 50, 60, 70, 80, 90, 100 % of the operations, those that all") == 2
    assert "nan" not in page


def test_the_epoch_that_was_selected_on_test_is_labelled(study) -> None:
    _, text, *_ = write(study(POCKET, "table3"))
    (best,) = [line for line in text.read_text().splitlines() if line.startswith("| [MSDNet last only (best epoch)]")]
    assert "| 77.77 ±0.00 (0.00) |" in best
    assert "Best epoch: selected on test" in text.read_text()


def test_damping_on_test_and_on_training_images(study) -> None:
    _, text, *_ = write(study(POCKET, "table5"))
    _, test, train, *_ = [line for line in text.read_text().splitlines() if line.startswith("| [Damping loss]")]
    assert re.search(r"\) \| 0.0100 ±0.0000 \| 0.0200 ±0.0000 \|", test)
    assert re.search(r"\) \| 0.0050 ±0.0000 \| 0.0100 ±0.0000 \|", train)


@pytest.mark.usefixtures("undrawn")
def test_a_single_exit_has_no_mean_over_exits(study) -> None:
    page = write(study(POCKET, "table3", "figure3"))[1].read_text()
    assert "mean over exits" not in page.split("**What the paper says.**")[1].split("## table3")[0].replace(
        "shown is the mean over exits", ""
    )
    assert "Damping loss last only less Threshold last only, top-1, last exit: " in page


def test_the_league_is_not_called_the_papers(study) -> None:
    page = write(study(POCKET, "league", seeds=1, only=("cross-entropy",)))[1].read_text()
    assert "\nEvery method in Table 1's setting: not in the paper, which" in page
    assert "The paper: " not in page


def test_weights_and_coefficients_where_they_were_recorded(study, manifest) -> None:
    """Two claims of sections 3.4 and C.2 hang on them; the manifests that lack them are counted."""
    made = study(POCKET, "table5")
    page = write(made)[1].read_text()
    assert "Weights of the exits" not in page
    assert "Damping coefficients" not in page
    row = made.experiments[0].row("Dynamic training with gradient")
    run, weights, gammas = row.with_seed(0), [0.5 + k / 10 for k in range(7)], [0.0019 + k / 1e6 for k in range(7)]
    one = manifest(run, [70.0] * 7, damping=[0.01] * 7, last_stats={"gamma": None, "weight": weights})
    one.save(made.out / "manifests" / f"{run_name(run)}.json")
    page = write(made)[1].read_text()
    assert "Damping coefficients" not in page
    (title,) = [line for line in page.splitlines() if line.startswith("**Weights of the exits, mean over the last ep")]
    assert title.endswith("Mean ± standard deviation over seeds. Not recorded of 1 run.")
    table = page.split(title)[1].split("**")[0]
    assert re.findall(r"^\| \[([^]]*)\]\([^)]*\) \|(.*)\|$", table, re.MULTILINE) == [
        ("Dynamic training with gradient", " " + " | ".join(f"{weight:.4f}" for weight in weights) + " ")
    ]
    one = manifest(run, [70.0] * 7, damping=[0.01] * 7, last_stats={"gamma": gammas, "weight": weights})
    one.save(made.out / "manifests" / f"{run_name(run)}.json")
    assert "| 0.001900 | 0.001901 | 0.001902 |" in write(made)[1].read_text()
    claim = next(line for line in page.splitlines() if "deeper exits get the larger weights" in line)
    assert "+10.00, n = 1" in claim


def test_a_page_of_nothing_and_of_some(study, tmp_path) -> None:
    empty = Study(names=("table1",), scale=POCKET, seeds=(0, 1), out=tmp_path / "empty")
    _, text, *_ = write(empty)
    assert "0 of 16 runs are done" in text.read_text()
    assert "## Verdicts" not in text.read_text()
    assert (
        "\nNot run (seeds 0, 1): MSDNet; WPN; Damping; + Power-sqrt; + Dynamic; WPN, its own recipe; "
        in text.read_text()
    )
    assert "| – |" not in text.read_text()
    assert "missing" not in text.read_text()
    one = study(POCKET, "table1", seeds=1)
    more = dataclasses.replace(one, seeds=(0, 1, 2))
    _, text, *_ = write(more)
    assert "8 of 24 runs are done" in text.read_text()
    assert ": missing" in text.read_text()
