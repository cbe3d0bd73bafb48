"""Specs, building what they name, refusals of configurations, and their JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp import config
from offramp.config import DataConfig, Run, Spec, TrainConfig, build, differences, resolve
from offramp.errors import UsageError

# --- Spec ---

identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
specs = st.builds(Spec, st.text(min_size=1), st.dictionaries(identifiers, values, max_size=4))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0.005", 0.005),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("true", True),
        ("False", False),
        ("None", None),
        ("0.1,0.2", (0.1, 0.2)),
        ("[1, 2]", [1, 2]),
        ("{'alpha': 0.3}", {"alpha": 0.3}),
        ("tanh", "tanh"),
        ("min-max", "min-max"),
        ("'true'", "true"),
        ("a=b", "a=b"),
        ("", ""),
        ("{[]: 1}", "{[]: 1}"),
        ("~/data (old)", "~/data (old)"),
    ],
)
def test_a_value_is_a_python_literal_or_else_a_string(word: str, value: object):
    parsed = Spec.parse(["name", f"key={word}"]).args["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name is missing"),
        (["damping", "strength"], "'strength' after 'damping' is not of the form key=value"),
        (["damping", "=3"], "not of the form"),
        (["damping", "two words=3"], "not of the form"),
        (["damping", "strength=1", "strength=2"], "strength is given twice"),
    ],
)
def test_words_that_are_no_spec_are_refused(words: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        Spec.parse(words)


@settings(derandomize=True, deadline=None)
@given(spec=specs)
def test_words_and_json_give_the_spec_back(spec: Spec):
    assert Spec.parse(spec.words()) == spec
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_reads_as_it_is_typed():
    assert str(Spec("damping", {"strength": (0.1, 0.2), "form": "x"})) == "damping strength=(0.1, 0.2) form='x'"


def test_tuples_become_lists_in_json_and_what_json_cannot_hold_is_refused():
    assert Spec("x", {"sizes": (1, (2, 3))}).to_json() == {"name": "x", "args": {"sizes": [1, [2, 3]]}}
    with pytest.raises(UsageError, match="cannot be written to a run's configuration"):
        Spec("x", {"sizes": {1, 2}}).to_json()


# --- resolve and build ---

OWN = """
def pair(first, *, second=2):
    return first, second

def anything(**options):
    return options

def nothing():
    return "nothing"

def broken(first):
    raise TypeError("a bug in here")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the Python path with a module of the user's."""
    (tmp_path / "own_things.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_things", "own_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_registered_name_or_a_path_is_found(own: Path):
    assert resolve("one", {"one": 1}, "thing") == 1
    assert resolve("own_things:nothing", {}, "thing")() == "nothing"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", r"Unknown thing 'trian'\. Did you mean train\? Known: test, train\. Your own: package.module:Name"),
        ("", "Unknown thing ''"),
        (":Name", "Unknown thing ':Name'"),
        ("..relative:Name", "Unknown thing '..relative:Name'"),
        ("no_such.module:Name", "no module 'no_such.module' on the Python path"),
        ("own_things.deeper:Name", "no module 'own_things.deeper'"),
        ("own_things:absent", "module 'own_things' has no 'absent'"),
        ("own_things:", "module 'own_things' has no ''"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_name_that_leads_nowhere_is_refused(name: str, message: str):
    with pytest.raises(UsageError, match=message):
        resolve(name, {"train": 1, "test": 2}, "thing")


def test_a_missing_import_inside_the_users_module_keeps_its_traceback(own: Path):
    (own / "own_broken.py").write_text("import a_library_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        resolve("own_broken:Name", {}, "thing")


@pytest.mark.usefixtures("own")
def test_arguments_win_over_defaults_and_defaults_not_taken_are_dropped():
    assert build(Spec("own_things:pair", {"first": 1}), {}, "thing", second=5, third=6) == (1, 5)
    assert build(Spec("own_things:pair", {"first": 1, "second": 7}), {}, "thing", second=5) == (1, 7)
    assert build(Spec("own_things:anything", {"a": 1}), {}, "thing", b=2) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("own_things:pair", {"first": 1, "secnd": 2}), r"has no argument 'secnd'\. Did you mean second\?"),
        (Spec("own_things:nothing", {"first": 1}), r"has no argument 'first'\. It takes none"),
        (Spec("own_things:pair"), "missing a required argument: 'first'"),
        (Spec("own_things:__name__"), "is of type str; name a class or a function"),
        (Spec("collections.abc:Sized"), "is abstract: it lacks __len__"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_cannot_be_called_so_is_refused(spec: Spec, message: str):
    with pytest.raises(UsageError, match=message):
        build(spec, {}, "thing")


@pytest.mark.usefixtures("own")
def test_a_bug_inside_the_users_builder_keeps_its_traceback():
    with pytest.raises(TypeError, match="a bug in here"):
        build(Spec("own_things:broken", {"first": 1}), {}, "thing")


# --- DataConfig, TrainConfig ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch-size must be a whole number of at least 1, not 0"),
        ({"holdout": -1}, "holdout must be a whole number of at least 0, not -1"),
        ({"workers": -1}, "workers must be a whole number of at least 0"),
    ],
)
def test_data_that_cannot_be_is_refused(wrong: dict, message: str):
    with pytest.raises(UsageError, match=message):
        DataConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"keep_checkpoints": 0}, "keep-checkpoints must be a whole number of at least 1"),
        ({"save_every_steps": 0}, "save-every-steps must be a whole number of at least 1"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"lr": -0.1}, "lr must be a number of at least 0, not -0.1"),
        ({"momentum": float("inf")}, "momentum must be a number"),
        ({"weight_decay": -1e-4}, "weight-decay must be a number"),
        ({"save_every_minutes": -1}, "save-every-minutes must be a number"),
        ({"optimizer": "sdg"}, r"optimizer 'sdg' is unknown\. Did you mean sgd\?"),
        ({"schedule": "cosin"}, "Did you mean cosine"),
        ({"precision": "fp16"}, "Known: float32, bf16"),
        ({"epochs": 3, "warmup_epochs": 4}, r"warmup-epochs \(4\) is longer than the run \(3 epochs\)"),
        ({"milestones": (0.5, 1.5)}, "milestones are shares of the epochs"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov is for optimizer sgd; adamw has no use for it"),
        ({"momentum": 0, "nesterov": True}, "nesterov is a form of momentum, and momentum is 0"),
    ],
)
def test_training_that_cannot_be_is_refused(wrong: dict, message: str):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**wrong)


def test_the_defaults_are_the_papers_recipe():
    recipe = TrainConfig()
    assert (recipe.epochs, recipe.optimizer, recipe.lr, recipe.momentum) == (300, "sgd", 0.1, 0.9)
    assert (recipe.weight_decay, recipe.schedule, recipe.warmup_epochs) == (1e-4, "cosine", 0)
    assert DataConfig().batch_size == 64


# --- JSON and differences ---


def test_a_run_as_json_is_plain_values_and_whole():
    plain = config.to_json(Run(objective=Spec("damping", {"strength": (0.1, 0.2)})))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["objective"] == {"name": "damping", "args": {"strength": [0.1, 0.2]}}
    assert plain["training"].keys() == TrainConfig.__dataclass_fields__.keys()


def test_free_fields_change_how_a_run_goes_not_what_it_computes():
    free = config.free_fields(TrainConfig)
    assert {"save_every_minutes", "keep_checkpoints", "tensorboard"} <= free
    assert not free & {"epochs", "seed", "lr", "nesterov", "milestones", "precision", "threads", "init"}
    assert config.free_fields(DataConfig) == {"root", "workers"}


def test_differences_name_every_field_by_its_path():
    before = config.to_json(Run(objective=Spec("damping", {"strength": 0.1}), training=TrainConfig(lr=0.1)))
    now = config.to_json(Run(objective=Spec("damping", {"strength": 0.2}), training=TrainConfig(lr=0.3)))
    assert differences(before, before) == []
    assert differences(before, now) == [
        "objective.args.strength: 0.1 there, 0.2 now",
        "training.lr: 0.1 there, 0.3 now",
    ]


def test_differences_show_fields_that_only_one_side_has_and_sections_that_became_values():
    assert differences({"a": 1}, {"b": 2}) == ["a: 1 there, None now", "b: None there, 2 now"]
    assert differences({"network": {"name": "x"}}, {"network": None}) == ["network: {'name': 'x'} there, None now"]


@pytest.mark.parametrize(
    "values",
    [
        *({"lr": 1e39}, {"lr": 3.5e38}, {"momentum": 1e300}, {"weight_decay": 1e39}, {"trunk_lr": 1e40}),
        *({"lr": 1e20, "trunk_lr": 1e20}, {"lr": 10**400}, {"epochs": 10**12}, {"threads": 10**9}),
    ],
    ids=str,
)
def test_what_no_float32_and_no_machine_can_hold_is_refused(values: dict[str, Any]) -> None:
    """A rate of 1e39 made weights that are not finite, with status 0."""
    with pytest.raises(UsageError, match=r"must be a"):
        TrainConfig(**values)
    assert TrainConfig(lr=3.4e38).lr == 3.4e38
