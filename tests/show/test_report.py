import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from tests.results import made_up

from offramp.commands import EvaluateOptions, evaluate
from offramp.evaluation import Certificate, Promise, Record
from offramp.json_files import write
from offramp.policy import EVERYBODY, NOBODY, SOFTMAX, Policy
from offramp.results.bench import Speed
from offramp.results.dynamic import leaves_from
from offramp.results.outcome import outcome
from offramp.show.report import _wilson
from offramp.terminal import with_error

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Strict(HTMLParser):
    """Tags that open and close in order, and everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attrs:
            assert not name.startswith("on")
            inside = (value or "").startswith(("#", "data:image/png;base64,"))
            if name in ("src", "href", "xlink:href", "data", "action") and not inside:
                self.fetched.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(run) -> Strict:
    parser = Strict()
    parser.feed((run / "report.html").read_text())
    parser.close()
    return parser


def test_the_page_parses_and_loads_nothing(reported):
    run = reported.run.path
    page = parsed(run)
    assert page.open == []
    assert page.fetched == []
    assert len(page.ids) == len(set(page.ids))
    source = (run / "report.html").read_text()
    assert "http://" not in source
    assert "https://" not in source
    assert not re.search(r"@import|url\((?!#)", source)
    assert source.count("<svg") == 5
    assert "The damping neuron" in source


def test_one_exit_without_neuron_and_without_held_out_images(make_run):
    run = make_run(exits=1, damping=False, searched=False)
    evaluate(EvaluateOptions(run))
    assert parsed(run).open == []
    source = (run / "report.html").read_text()
    assert source.count("<svg") == 3
    assert "amping neuron" not in source
    assert "top-1 on training images, %" in source


def test_the_page_says_what_was_measured_and_how(reported):
    run, found = reported.run.path, reported
    text = " ".join(" ".join(parsed(run).texts).split())
    assert "tiny_data num_classes=4: 40 images of arrays/test , 4 classes" in text
    assert "60" not in re.findall(
        r"Train figures are of (\d+) training", text
    )  # held-out images are no training images
    assert f"{found.test.mean_top1:.2f} %" in text
    for exit in found.test.exits:
        assert f"{with_error(exit.top1, exit.top1_se, 40)} {exit.nll:.4f} {exit.ece:.4f}" in text
    assert "± is the standard error over test images" in text
    assert "offramp train --data '<tiny>' --out run" in text
    assert "Trained with damping strength=0.005 ." in text
    assert "an earlier start" not in text
    assert "cpu: made up" in text
    assert "torch 2.0" in text
    assert "abc123 (changed)" in text
    assert "seed 0" in text


def words(run):
    return " ".join(" ".join(parsed(run).texts).split())


def with_policy(run):
    """The run with a policy of its own by which half of the images leave at the first exit of three."""
    evaluate(EvaluateOptions(run, train_limit=0), page=False)
    test = Record.load(run / "records" / "test.safetensors")
    confidence_KS, _ = SOFTMAX.over(test.logits_KSC, test.num_classes)
    Policy((confidence_KS[0].median().item(), NOBODY, EVERYBODY)).save(run / "policy.json")
    return run


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_the_runs_own_policy_does(make_run):
    run = with_policy(make_run())
    found = evaluate(EvaluateOptions(run)).dynamic
    assert parsed(run).open == []
    text = words(run)
    assert "It is the run’s own, from policy.json ." in text
    first, second, last = found.exits
    assert first.images * last.images > 0
    threshold, accuracies = leaves_from(first.threshold), f"{first.top1:.2f} {first.full_top1:.2f}"
    assert f"1 {threshold} {first.images} {100 * first.share:.1f} {accuracies}" in text
    assert "2 none 0 0.0 – –" in text
    assert f"3 all {last.images} {100 * last.share:.1f} {last.top1:.2f} {last.full_top1:.2f}" in text
    assert f"all 40 {found.point.accuracy:.2f} {found.full_top1:.2f}" in text
    assert f"{100 * found.share:.1f} % of the whole network’s" in text
    assert "Nothing is promised of it" in text
    assert second.images == 0
    assert "No test image leaves here." in text


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_where_a_policy_comes_from_and_what_it_promises(make_run):
    run = make_run()
    weights = evaluate(EvaluateOptions(run, train_limit=0), page=False).weights
    certificate = Certificate(Promise(), True, "how", "exact", 4, 4, 0, 0, 9, "arrays/certify", "c", weights)
    found = {"procedure": "search", "split": "arrays/search", "times": [1.0, 2.0, 4.0], "device": "a box", "batch": "1"}
    policy = Policy((NOBODY, NOBODY, EVERYBODY), found={**found, "certificate": certificate.to_json()}, network=weights)
    policy.save(run / "policy.json")
    evaluate(EvaluateOptions(run))
    text = words(run)
    assert "from policy.json , found on arrays/search (search)." in text
    assert "by the times it was found for (a box, batch 1) 4 ms, 100.0 %." in text
    assert f"Certified. {certificate}" in text
    assert "Nothing is promised" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_images_stand_under_their_exits_with_wrong_answers_marked(make_run):
    run = with_policy(make_run())
    picked = evaluate(EvaluateOptions(run)).dynamic.picked
    source = (run / "report.html").read_text()
    sheet, in_the_flow = sum(map(len, picked)), sum(len(row[:3]) for row in picked)
    assert source.count('src="data:image/png;base64,') == sheet + in_the_flow
    places = [
        source.index(text) for text in ("Easiest that left at exit 1", "left at exit 2", "Hardest that went to the end")
    ]
    assert places == sorted(places)
    wrong = [one for row in picked for one in row if one.answer != one.target]
    assert source.count('class="tile wrong"') == len(wrong) > 0
    for one in wrong:
        assert f'alt="test image {one.index}: &lt;{one.target}&gt;, answered &lt;{one.answer}&gt;"' in source
    assert len(source) < 300_000


def bench_of(run, weights=None, policy=None):
    """What `offramp bench` might have left: twice as fast one image at a time."""
    weights = weights or json.loads((run / "evaluation.json").read_text())["weights"]
    mode = made_up.mode("1", (0.3, 0.6, 1.0), engine=Speed(0.5, 2.0, 1.9, 2.1))
    modes = (mode, dataclasses.replace(mode, name="stream"))
    bench = made_up.bench(policy or Policy.load(run / "policy.json"), weights, *modes)
    write(run / "bench.json", bench.to_json())


@pytest.mark.usefixtures("undrawn")
def test_the_page_begins_with_the_outcome_and_the_flow_then_time(make_run):
    run = with_policy(make_run())
    bench_of(run)
    found = evaluate(EvaluateOptions(run))
    sentence = outcome(found)
    assert "2.0 times as fast one image at a time on a box, 2 threads" in sentence
    text, page = words(run), parsed(run)
    assert page.open == []
    places = [
        text.index(part) for part in (sentence, "Where 1,000 images leave", "Accuracy against time", "Every exit")
    ]
    assert places == sorted(places)
    assert found.written[-1] == found.run.report
    first = round(1000 * found.dynamic.exits[0].share)
    assert f"exit 1 1,000 come, {first} leave" in text


@pytest.mark.parametrize("changes", [{"weights": "f" * 64}, {"policy": Policy((0.1, 0.1, EVERYBODY))}])
@pytest.mark.usefixtures("undrawn")
def test_times_of_other_weights_or_another_policy_are_not_told(make_run, changes):
    run = with_policy(make_run())
    bench_of(run, **changes)
    found = evaluate(EvaluateOptions(run))
    assert found.bench is None
    assert "`offramp bench" in outcome(found)
    assert "Accuracy against time" not in words(run)


def test_names_cannot_become_markup(reported):
    source = reported.run.report.read_text()
    assert "<td>&lt;0&gt;</td>" in source
    assert "<tiny>" not in source


def test_the_page_follows_the_readers_theme(reported):
    source = reported.run.report.read_text()
    assert "prefers-color-scheme: dark" in source
    assert "var(--ink)" in source[source.index("<svg") :]
    plots = source[source.index("<svg") :]
    assert not re.search(r"#24292f|#6a737d|#d8dde3|#ffffff|#000000", plots)


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_metrics_or_environment_is_reported_without_them(make_run):
    run = make_run()
    for name in ("metrics.jsonl", "environment.json"):
        (run / name).unlink()
    evaluate(EvaluateOptions(run))
    source = (run / "report.html").read_text()
    assert "<h2>Training</h2>" not in source
    assert "trained on" not in source


def test_classes_are_sorted_by_what_depth_gains(reported):
    run, found = reported.run.path, reported
    gains = {
        name: last - first
        for name, first, last in zip(
            found.test.class_names, found.test.exits[0].class_top1, found.test.exits[-1].class_top1, strict=True
        )
    }
    texts = [text.strip() for text in parsed(run).texts if text.strip()]
    shown = [text for text in texts[texts.index("gain") :] if text in gains]
    assert [gains[name] for name in shown] == sorted(gains.values(), reverse=True)


@pytest.mark.parametrize(("top1", "n"), [(0.0, 20), (37.0, 100), (99.4, 355), (100.0, 50)])
def test_intervals_stay_inside_and_solve_wilsons_equation(top1, n):
    down, up = _wilson(top1, n)
    low, high = (top1 - down) / 100, (top1 + up) / 100
    assert -1e-12 <= low <= top1 / 100 <= high <= 1 + 1e-12
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:  # where the share is 1.96 standard errors (of the end) away from the end
            assert abs(top1 / 100 - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), rel=1e-9)


@pytest.mark.parametrize("n", [1, 20, 360, 10_000])
def test_no_accuracy_is_shown_as_certain_and_an_exits_standard_error_stays_what_it_is(n):
    p = 1 / (1 + 1 / n)  # where all of n images are one standard error away from the end of Wilson's interval
    assert 1 - p == pytest.approx(math.sqrt(p * (1 - p) / n))
    assert with_error(100.0, 0.0, n) == f"100.00 ±{100 * (1 - p):.2f}"
    for right in range(1, min(n, 50)):
        share = right / n
        error = 100 * math.sqrt(share * (1 - share) / n)
        assert with_error(100 * share, error, n) == f"{100 * share:.2f} ±{error:.2f}"
