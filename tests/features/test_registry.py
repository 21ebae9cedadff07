"""The registry: valid files, refused files with their messages, and the independence of features."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features.errors import InputError
from features.hashing import rows_of_tokens
from features.layout import TableLayout
from features.registry import FeatureRegistry, describe_validation_error
from features.spec import Categorical, CategoricalList, Numeric, NumericFit

YAML = """
label: click
group: user
weight: importance
seed: 12
features:
  user: categorical
  item: {type: categorical, probes: 2, key: old_item}
  genres: {type: categorical_list, separator: "|", pooling: sum}
  price: {type: numeric, transform: log1p}
  age: {type: numeric, transform: bucketize, num_buckets: 8}
"""


def from_yaml(tmp_path: Path, text: str) -> FeatureRegistry:
    path = tmp_path / "registry.yaml"
    path.write_text(text, encoding="utf-8")
    return FeatureRegistry.from_yaml(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        from_yaml(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "registry.yaml") in message
    return message


@pytest.fixture
def registry(tmp_path: Path) -> FeatureRegistry:
    return from_yaml(tmp_path, YAML)


def test_a_file_says_what_it_says(registry: FeatureRegistry):
    assert registry.features == (
        Categorical(name="user"),
        Categorical(name="item", probes=2, key="old_item"),
        CategoricalList(name="genres", separator="|", pooling="sum"),
        Numeric(name="price", transform="log1p"),
        Numeric(name="age", transform="bucketize", num_buckets=8),
    )
    assert (registry.label, registry.group, registry.weight, registry.seed) == ("click", "user", "importance", 12)
    assert [feature.name for feature in registry.token_features] == ["user", "item", "genres", "age"]
    assert [feature.name for feature in registry.dense_features] == ["price"]


def test_defaults(tmp_path: Path):
    registry = from_yaml(tmp_path, "features: {user: categorical, note: {probes: 3}}")
    assert (registry.label, registry.group, registry.weight, registry.seed) == ("label", None, None, 0)
    assert registry.features == (Categorical(name="user"), Categorical(name="note", probes=3))


def test_json_round_trip(registry: FeatureRegistry):
    fitted = registry.features[4].model_copy(update={"fitted": NumericFit(mean=0.1, std=1 / 3, boundaries=(1e-7, 2.5))})
    again = registry.with_settings(features=[*registry.features[:4], fitted])
    for one in (registry, again):
        assert FeatureRegistry.from_json(one.to_json()) == one
        assert FeatureRegistry.from_json(one.to_json()).fingerprint() == one.fingerprint()


def test_yaml_and_python_agree(registry: FeatureRegistry):
    assert registry == FeatureRegistry.of(
        label="click",
        group="user",
        weight="importance",
        seed=12,
        features={
            "user": "categorical",
            "item": {"type": "categorical", "probes": 2, "key": "old_item"},
            "genres": {"type": "categorical_list", "separator": "|", "pooling": "sum"},
            "price": {"type": "numeric", "transform": "log1p"},
            "age": {"type": "numeric", "transform": "bucketize", "num_buckets": 8},
        },
    )


def test_fingerprint_is_the_golden_one(registry: FeatureRegistry):
    """Datasets and bundles store it: it must not change with the version of pydantic, Python or this code."""
    assert registry.fingerprint() == "e6dba5b92859a0bbe7673aaec5629d64"


def test_fingerprint_moves_with_everything(registry: FeatureRegistry):
    document = json.loads(registry.to_json())
    changes = [
        {"label": "other"},
        {"group": None},
        {"weight": None},
        {"seed": 13},
        {"features": document["features"][::-1]},
        {"features": document["features"][:-1]},
        {"features": [{**document["features"][0], "probes": 2}, *document["features"][1:]]},
        {"features": [{**document["features"][0], "key": "before"}, *document["features"][1:]]},
    ]
    registries = [FeatureRegistry.from_json(json.dumps({**document, **change})) for change in changes]
    assert len({one.fingerprint() for one in [registry, *registries]}) == len(changes) + 1


def test_column_names_are_text_whatever_yaml_takes_them_for(tmp_path: Path):
    registry = from_yaml(
        tmp_path, "features: {no: categorical, on: categorical, 007: numeric, 1e3: numeric, ~: numeric}"
    )
    assert [feature.name for feature in registry.features] == ["no", "on", "007", "1e3", "~"]


def test_unicode_and_spaces_in_names(tmp_path: Path):
    registry = from_yaml(tmp_path, '\ufefffeatures: {"größe in cm": numeric, 日本: categorical, "a: b": categorical}')
    assert [feature.name for feature in registry.features] == ["größe in cm", "日本", "a: b"]


def test_merge_keys_work(tmp_path: Path):
    registry = from_yaml(tmp_path, "features:\n  a: &two {type: categorical, probes: 2}\n  b: {<<: *two, key: c}")
    assert registry.features[1] == Categorical(name="b", probes=2, key="c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features: {a: categorical, b: numeric, a: numeric}", "found 'a' twice, again in line 1; remove one"),
        ("label: x\nlabel: y\nfeatures: {a: numeric}", "found 'label' twice, again in line 2"),
        (
            "features: {label: categorical}",
            "found 'label'; rename the column; reserved are group, label, probability, weight",
        ),
        ("features: {group: numeric}", "found 'group'"),
        ("features: {weight: numeric}", "found 'weight'"),
        ("label: click\nfeatures: {click: categorical}", "the label cannot be a feature; found 'click'; remove it"),
        ("weight: w\nfeatures: {w: numeric}", "the weight cannot be a feature; found 'w'"),
        ("weight: label\nfeatures: {a: numeric}", "the label cannot be the weight or the group too; found 'label'"),
        ("features: {b: {key: a}, a: categorical}", "feature keys must be unique; found key 'a' of 'a' and 'b'"),
        ('features: {a: {key: "x\\x1fmain"}}', r"a feature needs a plain, printable key; found 'x\x1fmain'"),
        ('features: {"a\\nb": numeric}', r"a feature needs a plain, printable name; found 'a\nb'; rename the column"),
        ('features: {" ": numeric}', "a feature needs a plain, printable name; found ' '"),
        ("features: {'*': numeric}", "a feature needs a plain, printable name; found '*'"),
        ("features: {'^a$': numeric}", "found '^a$'; rename the column"),
        ("label: '*'\nfeatures: {a: numeric}", "the label needs a plain name; found '*'"),
        ("features: {}", "a registry needs at least one feature; found none; add one"),
        ("features: [a, b]", "expected a mapping with a mapping `features:`; found a list there"),
        ("", "expected a mapping with a mapping `features:`; found nothing"),
        ("[a]", "found a list; see docs/guide.md"),
        ("feats: {a: numeric}", "found the keys 'feats'"),
        ("labels: x\nfeatures: {a: numeric}", "unknown key 'labels'; did you mean 'label'?"),
        (
            "colour: x\nfeatures: {a: numeric}",
            "unknown key 'colour'; known keys: csv, features, group, label, label_rule, seed, weight",
        ),
        (
            "features: {user: {type: categorical, probs: 2}}",
            "unknown key 'features.user.probs'; did you mean 'probes'?",
        ),
        ("features: {a: {type: categorical, separator: x}}", "unknown key 'features.a.separator'; it belongs to categ"),
        ("features: {a: {type: numeric, pooling: sum}}", "'features.a.pooling'; it belongs to categorical_list"),
        ("features: {a: {type: list}}", "unknown feature type; found 'list' for 'a'; use one of categorical, categ"),
        ("features: {a: categorial}", "unknown feature type; found 'categorial' for 'a'; did you mean 'categorical'?"),
        ("features: {a: {type: [numeric]}}", "unknown feature type; found ['numeric'] for 'a'"),
        ("features: {a: 3}", "a feature is a type or a mapping with `type:`; found a: 3"),
        ("features: {a: }", "found a: None"),
        ("features: {a: {probes: 65}}", "features.a.probes: input should be less than or equal to 64; found 65"),
        (
            "features: {a: {type: numeric, transform: log}}",
            "features.a.transform: input should be 'standardize', 'log1p'",
        ),
        ("label: yes\nfeatures: {a: numeric}", "label: input should be a valid string; found True"),
        ("features: {a: [", "expected YAML; found while parsing"),
        ("features: {? [a] : numeric}", "expected YAML"),
        ("!!python/object/apply:os.getcwd []", "expected YAML; found could not determine a constructor"),
    ],
)
def test_refusals_say_what_and_where(tmp_path: Path, text: str, message: str):
    assert message in refusal(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(InputError, match="expected a registry file; found No such file or directory; draft one with"):
        FeatureRegistry.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="expected a registry file; found Is a directory"):
        FeatureRegistry.from_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("features: {größe: numeric}".encode("latin-1"))
    with pytest.raises(InputError, match="expected a registry file; found 'utf-8' codec"):
        FeatureRegistry.from_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"features": 3}', '{"features": [{"name": "a"}]}', "null"])
def test_json_that_is_no_registry(text: str):
    with pytest.raises(InputError):
        FeatureRegistry.from_json(text)


def test_a_registry_cannot_be_changed(registry: FeatureRegistry):
    for target, field in ((registry, "label"), (registry.features[0], "name")):
        with pytest.raises(ValidationError):
            setattr(target, field, "x")
    before = registry.fingerprint()
    other = registry.with_settings(features=registry.features[:2])
    assert (len(registry.features), len(other.features), registry.fingerprint()) == (5, 2, before)
    with pytest.raises(InputError, match="feature names must be unique"):
        registry.with_settings(features=[registry.features[0], registry.features[0]])


def test_diff_is_empty_for_equals_and_blind_to_what_prepare_adds(registry: FeatureRegistry):
    age = registry.features[4].model_copy(update={"fitted": NumericFit(mean=1, std=2)})
    fitted = registry.with_settings(features=[*registry.features[:4], age])
    assert registry.diff(registry) == registry.diff(fitted) == fitted.diff(registry) == []
    refitted = age.model_copy(update={"fitted": NumericFit(mean=1, std=3)})
    other = registry.with_settings(features=[*registry.features[:4], refitted])
    assert [line.split(":")[0] for line in fitted.diff(other)] == ["~ age.fitted"]


def test_diff_lists_each_difference(registry: FeatureRegistry):
    user, item, genres, price, _ = registry.features
    other = FeatureRegistry(
        label="click",
        group=None,
        weight="importance",
        seed=12,
        features=(genres, user, item.model_copy(update={"probes": 3}), price, Categorical(name="city")),
    )
    assert registry.diff(other) == [
        "~ group: 'user' -> None",
        "- age: numeric",
        "+ city: categorical",
        "~ item.probes: 2 -> 3",
        "~ order of the features",
    ]


def test_describing_errors_of_other_models():
    with pytest.raises(ValidationError) as caught:
        NumericFit.model_validate({"mean": 1, "std": 1, "edges": []})
    assert (
        describe_validation_error(caught.value, NumericFit) == "unknown key 'edges'; known keys: boundaries, mean, std"
    )


NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=8, unique=True)


@settings(deadline=None, max_examples=60)
@given(NAMES, st.randoms(use_true_random=False), st.integers(1, 12), st.integers(-5, 5))
def test_other_features_never_move_a_feature_rows(names: list[str], random, probes: int, seed: int):
    """Adding, removing and reordering features does not change the rows of the others."""
    tokens = np.array([3, 2**63 + 11], dtype=np.uint64)

    def rows(some: list[str]) -> dict[str, list[list[int]]]:
        registry = FeatureRegistry.of(seed=seed, features=dict.fromkeys(some, "categorical"))
        views = {"fs1": tuple(some), "main": tuple(some)}
        layout = TableLayout.of(registry, num_rows=10**6, width=2, probes=probes, views=views)
        return {name: rows_of_tokens(tokens, layout.salts_of(name)[:, None], 10**6).tolist() for name in some}

    everything = rows(names)
    shuffled = random.sample(names, len(names))
    fewer = shuffled[: random.randint(1, len(names))]
    assert rows(shuffled) == everything
    assert rows(fewer) == {name: everything[name] for name in fewer}
    assert rows(["new", *names])[names[0]] == everything[names[0]]


def test_a_renamed_feature_keeps_its_rows_by_its_key():
    def salts(features: dict) -> list[int]:
        registry = FeatureRegistry.of(features=features)
        layout = TableLayout.of(registry, num_rows=9, width=1, probes=2, views={"main": tuple(features)})
        return [slot.salt for slot in layout.slots]

    assert salts({"new": {"key": "old"}}) == salts({"old": "categorical"}) != salts({"new": "categorical"})
