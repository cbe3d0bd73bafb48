import contextlib
import csv
import dataclasses
import io
import json
import os
import pty
import subprocess
import sys

import pytest
from PIL import Image

from offramp.cli import main
from offramp.commands import PredictOptions, predict
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.runtime import Engine, Form, Plan

NAMES = ["a [bold].png", 'b,"quoted".png', "sub/c.png", "sub/d.png", "sub/e.png"]


@pytest.fixture
def images(tmp_path, parts):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, pixels in zip(NAMES, parts.test.pixels_SCHW[parts.test.indices_S], strict=False):
        Image.fromarray(pixels[0].numpy()).save(folder / name)
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def run(make_run, parts, tmp_path):
    folder = make_run()
    parts.test.inputs().save(tmp_path / "run" / "input.json")
    Policy((0.6, NOBODY, EVERYBODY)).save(tmp_path / "run" / "policy.json")
    return folder


def test_csv_and_json_lines_say_the_same_as_python(run, images, capsys):
    expected = list(predict(PredictOptions(run, [images])))
    assert len(expected) == 5
    assert main(["predict", run, str(images), "--format", "csv", "--batch", "2"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert main(["predict", run, str(images), "--format", "jsonl", "--batch-size", "2"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, row, values in zip(expected, rows, objects, strict=True):
        assert row.keys() == values.keys() == {"file", "label", "class_name", "exit", "confidence", "operations"}
        assert row == {name: str(value) for name, value in values.items()}
        assert values == pytest.approx(dataclasses.asdict(one), abs=1e-6)
    assert [os.path.relpath(row["file"], images) for row in rows] == NAMES


def test_a_summary_goes_to_standard_error(run, images, capsys):
    found = [one.exit for one in predict(PredictOptions(run, [images]))]
    assert main(["predict", run, str(images), "--format", "csv"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"5 images under {run}/policy.json: {found.count(1) / 5:.1%} at exit 1, 0.0% at exit 2, ")
    assert line.endswith("of the operations of running straight to the last exit, on average.")


def test_a_tuning_is_named_in_the_summary_and_one_line_says_why_it_is_not_used(
    run, images, tiny, parts, tmp_path, capsys
):
    policy, file = Policy((0.6, 0.6, EVERYBODY)), tmp_path / "run" / "bench.json"
    policy.save(tmp_path / "run" / "policy.json")
    looked_at = next(iter(parts.test.batches())).images_BCHW
    found = Engine(tiny, policy).tune(looked_at, batch_sizes=(8,), forms=(Form(),), seconds=0.05)
    tuning = dataclasses.replace(found, stream=Plan(asks=(0,))).to_json()
    file.write_text(json.dumps({"tuning": tuning}))
    assert main(["predict", run, str(images), "--format", "csv"]) == 0
    (summary,) = capsys.readouterr().err.splitlines()
    assert summary.startswith(f"5 images under {run}/policy.json, tuned by bench.json (asks exits 1, 3): ")
    assert ", 0.0% at exit 2, " in summary
    file.write_text(json.dumps({"tuning": {**tuning, "conditions": {**tuning["conditions"], "threads": 99}}}))
    assert main(["predict", run, str(images), "--format", "csv"]) == 0
    note, summary = capsys.readouterr().err.splitlines()
    assert note.startswith(f"{run}/bench.json is not used (threads: tuned for 99, here ")
    assert note.endswith(f"`offramp bench {run}` tunes anew.")
    assert summary.startswith(f"5 images under {run}/policy.json: ")


@pytest.mark.parametrize(("page", "headers"), [(2, 3), (5, 1), (100, 1)])
def test_tables_for_people_have_a_row_an_image(page, headers, run, images, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["offramp.commands.predict"], "PAGE", page)
    monkeypatch.chdir(images)
    assert main(["predict", run, "."]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert sum(line.endswith("confidence   operations") for line in lines) == headers
    rows = [line for line in lines if line.endswith("%")]
    expected = list(predict(PredictOptions(run, ["."])))
    for row, one in zip(rows, expected, strict=True):
        assert row.startswith(f" {one.file} ")
        numbers = [one.class_name, str(one.exit), f"{one.confidence:.4f}", f"{one.operations:.1%}"]
        assert row.split()[-4:] == numbers


def test_a_long_name_is_folded_and_not_cut(run, images, capsys, monkeypatch):
    (images / NAMES[0]).rename(images / ("w" * 150 + ".png"))
    monkeypatch.chdir(images)
    assert main(["predict", run, "."]) == 0
    assert capsys.readouterr().out.count("w") == 150


def test_without_a_policy_it_says_so_with_the_way_out(run, images, tmp_path, capsys):
    (tmp_path / "run" / "policy.json").unlink()
    assert main(["predict", run, str(images), "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert {row["exit"] for row in csv.DictReader(io.StringIO(captured.out))} == {"3"}
    note, summary = captured.err.splitlines()
    assert "the last exit answers every image" in note
    assert f"`offramp policy {run}` or `offramp certify {run}`" in note
    assert summary.startswith("5 images: 0.0% at exit 1")
    Policy((EVERYBODY,) * 3).save(tmp_path / "all.json")
    assert main(["predict", run, str(images / NAMES[0]), "--policy", str(tmp_path / "all.json")]) == 0
    assert capsys.readouterr().err.startswith(f"1 image under {tmp_path / 'all.json'}: 100.0% at exit 1")


def test_files_that_cannot_be_read_are_named_and_the_others_answered(run, images, capsys):
    (images / "broken.png").write_bytes(b"no")
    (images / "sub" / "scan.tif").write_bytes(b"II*")
    assert main(["predict", run, str(images), "--format", "csv"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    first, second, summary, last = captured.err.splitlines()
    assert first.startswith(f"{images / 'broken.png'} cannot be read as an image")
    assert second.startswith(f"{images / 'sub' / 'scan.tif'} cannot be read as an image")
    assert summary.startswith("5 images under")
    assert last == "offramp: 2 of 7 files could not be read."


def test_nothing_that_can_be_read_is_a_failure(run, images, capsys):
    (images / "broken.png").write_bytes(b"no")
    assert main(["predict", run, str(images / "broken.png")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "offramp: The file could not be read."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN"], "Name at least one image or folder"),
        (["RUN", "IMAGES", "nowhere.png"], "There is no file or folder nowhere.png"),
        (["RUN", "RUN"], "There is no image (.jpeg"),
        (["IMAGES", "IMAGES"], "is not a run"),
        (["RUN", "IMAGES", "--policy", "none.json"], "There is no file none.json"),
        (["RUN", "IMAGES", "--batch", "0"], "batch_size must be at least 1, not 0"),
        (["RUN", "IMAGES", "--device", "cuda:9"], "cuda"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(arguments, words, run, images, capsys):
    named = {"RUN": run, "IMAGES": str(images)}
    assert main(["predict", *(named.get(argument, argument) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert words in captured.err


def test_lines_go_to_standard_output_also_when_progress_is_shown_and_names_keep_their_bytes(run, images):
    odd = os.fsencode(images / "sub") + b"/caf\xe9.png"
    os.rename(os.fsencode(images / "sub" / "c.png"), odd)
    command = [sys.executable, "-m", "offramp", "predict", run, str(images), "--format", "csv"]
    terminal, end = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(end)
    said = os.read(terminal, 100_000)
    os.close(terminal)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[3].split(b",")[0] == odd
    assert b"images under" in said
    assert b"csv" not in said


HOSTILE = [
    "new\nline,x.png",
    "\x1b]0;title\x07.png",
    "=1+1.png",
    "+1.png",
    "-1.png",
    "@sum.png",
    "\ttab.png",
    "\rreturn.png",
    '"q".png',
]


def test_a_name_stays_one_row_and_is_no_formula(run, images, capsys, tmp_path, monkeypatch):
    """A name with a line break was two rows on Python 3.11; one that begins with = is run by a spreadsheet."""
    picture = (images / "sub" / "c.png").read_bytes()
    (tmp_path / "odd").mkdir()
    for name in HOSTILE:
        (tmp_path / "odd" / name).write_bytes(picture)
    inputs = tmp_path / "run" / "input.json"
    inputs.write_text(
        json.dumps({**json.loads(inputs.read_text()), "class_names": ["=cmd|' /C calc'!A0", "a\r\nb", "-2"]})
    )
    monkeypatch.chdir(tmp_path / "odd")
    assert (
        main(["predict", run, *(name if name[0] not in "+-" else f"./{name}" for name in HOSTILE), "--format", "csv"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.endswith("\r\n")
    rows = list(csv.reader(io.StringIO(out, newline=""), strict=True))
    assert [len(row) for row in rows] == [6] * (len(HOSTILE) + 1)
    assert [row[0] for row in rows[1:]] == [
        *HOSTILE[:2],
        "'=1+1.png",
        "./+1.png",
        "./-1.png",
        "'@sum.png",
        "'\ttab.png",
        "'\rreturn.png",
        '"q".png',
    ]
    assert {row[2] for row in rows[1:]} <= {"'=cmd|' /C calc'!A0", "a\r\nb", "'-2"}
    assert all(float(row[4]) <= 1 for row in rows[1:])


def test_no_control_character_of_a_name_reaches_a_terminal(run, images, capsys, tmp_path, monkeypatch):
    evil = "\x1b[2J\x9b\x07\u202e\u2028\x7f\n"
    for content, name in ((b"no", "broken"), ((images / "sub" / "c.png").read_bytes(), "good")):
        (images / f"{name}{evil}.png").write_bytes(content)
    os.rename(images / "sub" / "c.png", os.fsencode(images / "sub") + b"/\x9bc.png")
    inputs = tmp_path / "run" / "input.json"
    inputs.write_text(json.dumps({**json.loads(inputs.read_text()), "class_names": [evil, evil, "ä" + evil]}))
    (tmp_path / "run").rename(tmp_path / f"run{evil}")
    moved = str(tmp_path / f"run{evil}")
    for arguments in (
        ["predict", moved, str(images)],
        ["predict", moved, f"nowhere{evil}"],
        ["evaluate", f"none{evil}"],
        [f"--{evil}"],
    ):
        with contextlib.suppress(SystemExit):
            main(arguments)
        captured = capsys.readouterr()
        assert not set(captured.out + captured.err) & set("\x1b\x9b\x07\u202e\u2028\x7f\udc9b")
        assert "\\x1b[2J\\x9b\\x07\\u202e\\u2028\\x7f" in captured.out + captured.err
        assert arguments[0] != "evaluate" or len(captured.err.splitlines()) == 1


def test_an_image_of_too_many_pixels_is_named_and_the_list_goes_on(run, images, capsys):
    Image.new("1", (3000, 1000)).save(images / "large.png")
    os.mkfifo(images / "fifo.png")
    assert main(["predict", run, str(images), "--format", "csv", "--max-megapixels", "2"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert f"{images / 'large.png'} has 1000 times 3000 pixels, more than 2 million" in captured.err
    assert f"{images / 'fifo.png'} cannot be read as an image (it is no regular file)" in captured.err
    assert main(["predict", run, str(images / "large.png"), "--format", "csv"]) == 0
    assert main(["predict", run, str(images), "--max-megapixels", "0"]) == 2
