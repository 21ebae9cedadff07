"""FeatureRegistry: the ordered, immutable description of an example."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from features.errors import InputError
from features.feature_types import FEATURE_TYPES, AnyFeature
from features.files import check_readable
from features.io.csv_format import CsvFormat
from features.labels import LabelRule
from features.spec import Numeric, later_setting

RESERVED_NAMES = frozenset({"label", "weight", "group", "probability"})
"""Columns of dataset parts and of golden rows."""


def is_plain_name(name: str) -> bool:
    """True for names without the separator of salts, which is not printable, and that polars takes for no pattern.

    >>> [is_plain_name(name) for name in ("price in $", "a\x1fb", " ", "*", "^a$")]
    [True, False, False, False, False]
    """
    is_pattern = name == "*" or (name.startswith("^") and name.endswith("$"))
    return name.isprintable() and bool(name.strip()) and not is_pattern


class FeatureRegistry(BaseModel):
    """Features in order, the columns of label, weight and group, and the seed of all salts.

    Raises `InputError` (a `ValueError`) for duplicate or reserved names, unknown keys and unknown types.

    >>> registry = FeatureRegistry.of(label="click", features={"user": "categorical", "price": "numeric"})
    >>> [feature.name for feature in registry.token_features], [feature.name for feature in registry.dense_features]
    (['user'], ['price'])
    >>> FeatureRegistry.from_json(registry.to_json()) == registry
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = "label"
    """Column of the outcome: 0 and 1, -1 and 1, or flags such as yes and no; otherwise `label_rule` defines the
    positive values."""
    label_rule: LabelRule | None = later_setting()
    """In a registry file it is part of the label: `label: {column: rating, at_least: 4}`."""
    group: str | None = None
    """Column whose values group the examples for gAUC; often the user."""
    weight: str | None = None
    """Column of non-negative example weights."""
    seed: int = 0
    """Part of every salt: another seed gives features other rows of the table."""
    csv: CsvFormat | None = later_setting()
    """Format of delimited text, if not commas and empty fields for missing values."""
    features: tuple[AnyFeature, ...]

    @model_validator(mode="before")
    @classmethod
    def _split_label(cls, document: Any) -> Any:
        """Accept a label with a rule as one mapping, as registry files write it."""
        if not isinstance(document, dict) or not isinstance(document.get("label"), dict):
            return document
        rule = dict(document["label"])
        column = rule.pop("column", None)
        if not isinstance(column, str):
            remedy = "write, for example, `label: {column: rating, at_least: 4}`"
            raise InputError("a label with a rule needs `column:`", found=repr(column), remedy=remedy)
        return {**document, "label": column, "label_rule": rule or None}

    @field_validator("features")
    @classmethod
    def _check_names(cls, features: tuple[AnyFeature, ...]) -> tuple[AnyFeature, ...]:
        if not features:
            raise InputError("a registry needs at least one feature", found="none", remedy="add one under `features:`")
        seen: dict[tuple[str, str], str] = {}
        for feature in features:
            if feature.name in RESERVED_NAMES:
                remedy = f"rename the column; reserved are {', '.join(sorted(RESERVED_NAMES))}"
                raise InputError("a feature needs a name that is not reserved", found=repr(feature.name), remedy=remedy)
            for kind, value in (("name", feature.name), ("key", feature.stable_key)):
                if not is_plain_name(value):
                    remedy = "rename it" if kind == "key" else "rename the column"
                    raise InputError(f"a feature needs a plain, printable {kind}", found=repr(value), remedy=remedy)
                if (kind, value) in seen:
                    found = f"{kind} {value!r} of {feature.name!r} and {seen[kind, value]!r}"
                    raise InputError(f"feature {kind}s must be unique", found=found, remedy="rename one of them")
                seen[kind, value] = feature.name
        return features

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        for role, column in (("label", self.label), ("weight", self.weight), ("group", self.group)):
            if column is not None and not is_plain_name(column):
                raise InputError(f"the {role} needs a plain name", found=repr(column), remedy="rename the column")
            if role != "group" and any(feature.name == column for feature in self.features):
                remedy = "remove it from `features:`, or name another column"
                raise InputError(f"the {role} cannot be a feature", found=repr(column), remedy=remedy)
        if self.label in (self.weight, self.group):
            remedy = "name another column"
            raise InputError("the label cannot be the weight or the group too", found=repr(self.label), remedy=remedy)
        return self

    def __str__(self) -> str:
        """The label and one line per feature, with the settings that are not defaults.

        >>> print(FeatureRegistry.of(label="click", features={"user": "categorical", "price": "numeric"}))
        label: click
        user: categorical
        price: numeric
        """
        lines = [f"{role}: {column}" for role in ("label", "weight", "group") if (column := getattr(self, role))]
        for feature in self.features:
            settings = feature.model_dump(mode="json", exclude_defaults=True, exclude={"name", "type"})
            lines.append(
                ": ".join([feature.name, ", ".join([feature.type, *(f"{k}={v}" for k, v in settings.items())])])
            )
        return "\n".join(lines)

    @property
    def token_features(self) -> tuple[AnyFeature, ...]:
        """Features that read the table, in registry order."""
        return tuple(feature for feature in self.features if feature.has_tokens)

    @property
    def dense_features(self) -> tuple[AnyFeature, ...]:
        """Features that are float columns, in registry order."""
        return tuple(feature for feature in self.features if not feature.has_tokens)

    @property
    def has_later_settings(self) -> bool:
        """True if `to_json` has keys that readers of the first format refuse."""
        models = (self, *self.features)
        return any(type(model).model_fields[key].exclude_if for model in models for key in model.model_dump())

    def fingerprint(self) -> str:
        """32 hexadecimal digits that identify the registry with its fitted statistics."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """Compact JSON with sorted keys; `from_json` reads it to an equal registry."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "FeatureRegistry":
        """Registry of the text of `to_json`; raises `InputError` for any other text."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise InputError("a registry in JSON", found=str(error), remedy="write it again with to_json") from None
        return _validated(document, "registry")

    @staticmethod
    def of(*, features: Mapping[str, Any], **settings: Any) -> "FeatureRegistry":
        """Registry of features as in a registry file: name to type, or name to settings."""
        return _from_mapping({**settings, "features": dict(features)}, "registry")

    @staticmethod
    def from_yaml(path: str | Path) -> "FeatureRegistry":
        """Read a registry file; raises `InputError` that names the file and the key."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            check_readable(path)
            found = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            remedy = "draft one with `muxrec prepare --infer FILE`"
            raise InputError(f"{path}: expected a registry file", found=found, remedy=remedy) from None
        return FeatureRegistry.from_text(text, str(path))

    @staticmethod
    def from_text(text: str, where: str = "registry") -> "FeatureRegistry":
        """Read the text of a registry file; errors begin with `where`.

        >>> FeatureRegistry.from_text("label: click\\nfeatures: {user: categorical}").label
        'click'
        """
        try:
            document = yaml.load(text, Loader=_RegistryLoader)
        except yaml.YAMLError as error:
            found = " ".join(str(error).split())
            raise InputError(f"{where}: expected YAML", found=found, remedy="correct that line") from None
        except InputError as error:
            raise error.located(where) from None
        return _from_mapping(document, where)

    def with_settings(self, **settings: Any) -> "FeatureRegistry":
        """Copy with other settings, such as `label` or `features`, checked again.

        >>> registry = FeatureRegistry.of(features={"user": "categorical"})
        >>> registry.with_settings(csv={"separator": ";"}).csv
        CsvFormat(separator=';', null_values=())
        """
        return _validated({**self.model_dump(), **settings}, "registry")

    def diff(self, other: "FeatureRegistry") -> list[str]:
        """Differences as lines, from this registry to the other; empty if both encode alike.

        Fitted statistics count only if both sides have them: a registry file has none.

        >>> one = FeatureRegistry.of(features={"a": "categorical"})
        >>> one.diff(FeatureRegistry.of(features={"a": "categorical", "b": "numeric"}))
        ['+ b: numeric']
        """
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        lines = [
            f"~ {name}: {mine.get(name)!r} -> {theirs.get(name)!r}"
            for name in ("label", "label_rule", "group", "weight", "seed", "csv")
            if mine.get(name) != theirs.get(name)
        ]
        before = {feature.name: feature for feature in self.features}
        after = {feature.name: feature for feature in other.features}
        lines += [f"- {name}: {before[name].type}" for name in before if name not in after]
        lines += [f"+ {name}: {after[name].type}" for name in after if name not in before]
        lines += [line for name in before if name in after for line in _feature_diff(before[name], after[name])]
        is_moved = [name for name in before if name in after] != [name for name in after if name in before]
        return lines + ["~ order of the features"] * is_moved


def _feature_diff(before: AnyFeature, after: AnyFeature) -> list[str]:
    mine, theirs = before.model_dump(mode="json"), after.model_dump(mode="json")
    if isinstance(before, Numeric) and isinstance(after, Numeric) and None in (before.fitted, after.fitted):
        mine["fitted"] = theirs["fitted"] = None
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    return [f"~ {before.name}.{key}: {mine.get(key)!r} -> {theirs.get(key)!r}" for key in keys]


def _from_mapping(document: object, where: str) -> FeatureRegistry:
    """Registry of the mapping form `features: {name: type | {type: ...}}`, reduced to the list form."""
    features = document.get("features") if isinstance(document, dict) else document
    if not isinstance(document, dict) or not isinstance(features, dict):
        if isinstance(document, dict) and "features" not in document:
            found = f"the keys {', '.join(map(repr, document))}"
        else:
            kinds = {type(None): "nothing", list: "a list", str: "a text"}
            found = kinds.get(type(features), f"{features!r}"[:40]) + " there" * isinstance(document, dict)
        remedy = "see docs/guide.md, or start from `muxrec prepare --infer FILE`"
        raise InputError(f"{where}: expected a mapping with a mapping `features:`", found=found, remedy=remedy)
    entries: list[dict[str, Any]] = []
    for name, value in features.items():
        settings: object = {"type": value} if isinstance(value, str) else value
        if not isinstance(settings, dict):
            expected, remedy = (
                f"{where}: a feature is a type or a mapping with `type:`",
                "write, for example, `NAME: categorical`",
            )
            raise InputError(expected, found=f"{name}: {value!r}", remedy=remedy)
        kind = settings.get("type", "categorical")
        if not isinstance(kind, str) or kind not in FEATURE_TYPES:
            close = difflib.get_close_matches(str(kind), FEATURE_TYPES, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(FEATURE_TYPES)}"
            raise InputError(f"{where}: unknown feature type", found=f"{kind!r} for {name!r}", remedy=remedy)
        entries.append({"type": kind, **settings, "name": str(name)})
    return _validated({**document, "features": entries}, where)


def _validated(document: object, where: str) -> FeatureRegistry:
    try:
        return FeatureRegistry.model_validate(document)
    except ValidationError as error:
        complaint = describe_validation_error(error, FeatureRegistry)
        loc = error.errors()[0]["loc"]
        if isinstance(document, dict) and len(loc) > 1 and loc[0] == "features":
            # pydantic numbers the features; show their names.
            feature = document["features"][loc[1]]
            if isinstance(feature, dict) and "name" in feature:
                complaint = complaint.replace(".".join(map(str, loc[:3])), f"features.{feature['name']}", 1)
        raise InputError(f"{where}: {complaint}") from None


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for pydantic's first complaint: place, expected, found, and the closest known key."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return str(inner)
    place = ".".join(str(part) for part in first["loc"]) or "top level"
    if first["type"] == "extra_forbidden":
        key, names = str(first["loc"][-1]), _field_names(model, first["loc"])
        close = difflib.get_close_matches(key, names, n=1)
        others = [kind for kind, feature_type in FEATURE_TYPES.items() if key in feature_type.model_fields]
        if others and "features" in model.model_fields and first["loc"][0] == "features":
            remedy = f"it belongs to {' and '.join(others)}"
        else:
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(names))}"
        return f"unknown key {place!r}; {remedy}"
    return f"{place}: {first['msg'].lower()}; found {first['input']!r}"


_PARTS: dict[str, type[BaseModel]] = {"label_rule": LabelRule, "csv": CsvFormat}


def _field_names(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """Known keys at a place; inside a feature, those of its type."""
    if "features" in model.model_fields and len(loc) > 1:
        if loc[0] in _PARTS:
            return set(_PARTS[str(loc[0])].model_fields)
        kinds = [FEATURE_TYPES[str(part)] for part in loc if part in FEATURE_TYPES]
        return {name for kind in kinds or FEATURE_TYPES.values() for name in kind.model_fields}
    return set(model.model_fields)


class _RegistryLoader(yaml.SafeLoader):
    """A safe loader that reads keys as text, like column names, and refuses a repeated key.

    Plain YAML 1.1 reads a column `no` or `on` as a boolean and `007` as 7, and drops the first of two equal keys.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                found = f"{key.value!r} twice, again in line {key.start_mark.line + 1}"
                raise InputError("keys of a registry file must be unique", found=found, remedy="remove one")
            seen.add(key.value)
            if key.value != "<<":  # a merge key
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep=deep)
