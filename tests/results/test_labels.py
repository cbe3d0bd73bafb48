from offramp.objectives import PowerSqrt, describe, dynamic
from offramp.results.labels import differences, labels, short_name, summary


def recipe(objective="CrossEntropy", module="offramp.objectives.x", args=None, **more):
    return {"objective": {"name": f"{module}:{objective}", "args": args or {}}, **more}


def labelled(*recipes):
    keyed = dict(zip("abcdef", recipes, strict=False))
    return list(labels(list(keyed), differences(keyed)).values())


def test_fields_are_found_in_depth_and_in_order():
    found = differences({"a": {"z": {"y": 1, "x": [1]}, "b": 1}, "b": {"z": {"y": 1, "x": [2]}, "b": 2}})
    assert found == [("z.x", {"a": [1], "b": [2]}), ("b", {"a": 1, "b": 2})]


def test_a_missing_field_counts_as_none():
    assert differences({"a": {"x": 1}, "b": {}}) == [("x", {"a": 1, "b": None})]


def test_arguments_are_compared_only_between_equal_names():
    recipes = [recipe(), recipe("PowerSqrt", args={"strength": 0.005}), recipe("PowerSqrt", args={"strength": 0.075})]
    assert labelled(*recipes) == ["CrossEntropy", "PowerSqrt strength=0.005", "PowerSqrt strength=0.075"]


def test_an_argument_that_all_of_a_name_share_is_not_said():
    recipes = [recipe(), recipe("PowerSqrt", args={"strength": 0.005})]
    assert labelled(*recipes) == ["CrossEntropy", "PowerSqrt"]


def test_equal_names_of_different_modules_are_told_apart():
    assert labelled(recipe(module="mine"), recipe(module="yours")) == ["mine:CrossEntropy", "yours:CrossEntropy"]


def test_hashes_of_images_are_said_only_where_nothing_else_tells():
    images = [{"test": "1" * 64}, {"test": "2" * 64}]
    assert labelled(recipe(images=images[0]), recipe("Damping", images=images[1])) == ["CrossEntropy", "Damping"]
    assert labelled(recipe(images=images[0]), recipe(images=images[1])) == ["test=11111111…", "test=22222222…"]


def test_objectives_go_by_the_names_that_make_them():
    assert short_name(describe(PowerSqrt())) == "power-sqrt"
    assert short_name(describe(dynamic())) == "dynamic"
    assert summary(describe(dynamic(form="damping"))).startswith("dynamic form=damping strength=")
    recipes = [recipe(), recipe("Damping", network={"name": "m:net", "args": {"damping": True}})]
    recipes[0]["network"] = {"name": "m:net", "args": {"damping": False}}
    assert labelled(*recipes) == ["CrossEntropy", "Damping"]


def test_summary_has_the_arguments_in_brief():
    spec = {
        "name": "m:PowerSqrt",
        "args": {"strength": 0.005, "weighting": {"alpha": 0.8, "over": "exits"}, "root": None},
    }
    assert summary(spec) == "PowerSqrt strength=0.005 weighting={alpha=0.8, …} root=none"
    assert summary({"name": "m:CrossEntropy", "args": {}}) == "CrossEntropy"
    assert summary({"name": "m:Own", "args": {"weights": {}}}) == "Own weights={}"
