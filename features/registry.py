"""FeatureRegistry: the ordered, immutable description of an example, and nothing global about it."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from features.errors import InputError
from features.spec import FEATURE_TYPES, AnyFeature, Numeric

RESERVED_NAMES = frozenset({"label", "weight", "group"})


class FeatureRegistry(BaseModel):
    """Features in order, the label's column, and the seed of all salts.

    Raises `InputError` (a `ValueError`) for duplicate or reserved names, unknown keys and unknown types.

    >>> registry = FeatureRegistry.of(label="click", features={"user": "categorical", "price": "numeric"})
    >>> [feature.name for feature in registry.token_features], [feature.name for feature in registry.dense_features]
    (['user'], ['price'])
    >>> FeatureRegistry.from_json(registry.to_json()) == registry
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = "label"
    """Column that holds 0 or 1."""
    group: str | None = None
    """Column whose values group the examples for gAUC; often the user."""
    weight: str | None = None
    """Column of non-negative example weights."""
    seed: int = 0
    """Part of every salt; another seed is another arrangement of the table."""
    features: tuple[AnyFeature, ...]

    @field_validator("features")
    @classmethod
    def _check_names(cls, features: tuple[AnyFeature, ...]) -> tuple[AnyFeature, ...]:
        if not features:
            raise InputError("a registry needs at least one feature", found="none", remedy="add one under `features:`")
        seen: dict[str, str] = {}
        for feature in features:
            if feature.name in RESERVED_NAMES or not feature.name.isprintable() or not feature.name.strip():
                remedy = f"rename the column; reserved are {', '.join(sorted(RESERVED_NAMES))}"
                raise InputError("a feature needs a printable name of its own", found=repr(feature.name), remedy=remedy)
            for kind, value in (("name", feature.name), ("key", "key:" + feature.stable_key)):
                if value in seen:
                    found = f"{kind} {value.removeprefix('key:')!r} of {feature.name!r} and {seen[value]!r}"
                    raise InputError(f"feature {kind}s must be unique", found=found, remedy="rename one of them")
                seen[value] = feature.name
        return features

    @model_validator(mode="after")
    def _check_label(self) -> Self:
        for role, column in (("label", self.label), ("weight", self.weight)):
            if any(feature.name == column for feature in self.features):
                remedy = "remove it from `features:`, or name another column"
                raise InputError(f"the {role} cannot be a feature", found=repr(column), remedy=remedy)
        return self

    @property
    def token_features(self) -> tuple[AnyFeature, ...]:
        """Features that read the table, in registry order."""
        return tuple(feature for feature in self.features if feature.has_tokens)

    @property
    def dense_features(self) -> tuple[AnyFeature, ...]:
        """Features that are float columns, in registry order."""
        return tuple(feature for feature in self.features if not feature.has_tokens)

    def fingerprint(self) -> str:
        """32 hexadecimal digits that change with anything in the registry, fitted statistics included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """Compact JSON with sorted keys; `from_json` reads it back to an equal registry."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "FeatureRegistry":
        """Read what `to_json` wrote; raises `InputError` where it cannot."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise InputError("a registry in JSON", found=str(error), remedy="write it again with to_json") from None
        return _validated(document, "registry")

    @staticmethod
    def of(*, features: Mapping[str, Any], **settings: Any) -> "FeatureRegistry":
        """Registry from the mapping form of the registry file: name to type, or name to settings."""
        return _from_mapping({**settings, "features": dict(features)}, "registry")

    @staticmethod
    def from_yaml(path: str | Path) -> "FeatureRegistry":
        """Read a registry file; raises `InputError` that names the file and the key."""
        path = Path(path)
        try:
            document = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("a registry file", found=str(error), remedy="see `muxrec prepare --infer`") from None
        except yaml.YAMLError as error:
            found = " ".join(str(error).split())
            raise InputError(f"{path}: expected YAML", found=found, remedy="correct that line") from None
        return _from_mapping(document, str(path))

    def with_features(self, features: Iterable[AnyFeature]) -> "FeatureRegistry":
        """Copy with other features, checked again."""
        return FeatureRegistry.model_validate({**self.model_dump(), "features": [f.model_dump() for f in features]})

    def diff(self, other: "FeatureRegistry") -> list[str]:
        """Differences as lines, from this registry to the other; empty where tokens and floats are made alike.

        Fitted statistics count only where both sides have them: a registry file never does.

        >>> one = FeatureRegistry.of(features={"a": "categorical"})
        >>> one.diff(FeatureRegistry.of(features={"a": "categorical", "b": "numeric"}))
        ['+ b: numeric']
        """
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        lines = [
            f"~ {name}: {mine[name]!r} -> {theirs[name]!r}"
            for name in ("label", "group", "weight", "seed")
            if mine[name] != theirs[name]
        ]
        before = {feature.name: feature for feature in self.features}
        after = {feature.name: feature for feature in other.features}
        lines += [f"- {name}: {before[name].type}" for name in before if name not in after]
        lines += [f"+ {name}: {after[name].type}" for name in after if name not in before]
        for name in before:
            if name in after:
                lines += _feature_diff(before[name], after[name])
        shared_before = [name for name in before if name in after]
        shared_after = [name for name in after if name in before]
        return lines + (["~ order of the features"] if shared_before != shared_after else [])


def _feature_diff(before: AnyFeature, after: AnyFeature) -> list[str]:
    mine, theirs = before.model_dump(mode="json"), after.model_dump(mode="json")
    if isinstance(before, Numeric) and isinstance(after, Numeric) and None in (before.fitted, after.fitted):
        mine["fitted"] = theirs["fitted"] = None
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    return [f"~ {before.name}.{key}: {mine.get(key)!r} -> {theirs.get(key)!r}" for key in keys]


def _from_mapping(document: object, where: str) -> FeatureRegistry:
    """Lower the mapping form `features: {name: type | {type: ...}}` to the list form and validate it."""
    if not isinstance(document, dict) or not isinstance(document.get("features"), dict):
        remedy = "see docs/guide.md, or start from `muxrec prepare --infer FILE`"
        raise InputError(f"{where}: expected a mapping with `features:`", found=type(document).__name__, remedy=remedy)
    features: list[dict[str, Any]] = []
    for name, value in document["features"].items():
        settings: object = {"type": value} if isinstance(value, str) else value
        if not isinstance(settings, dict):
            found = f"{name}: {value!r}"
            raise InputError(f"{where}: a feature is a type or a mapping with `type:`", found=found)
        kind = settings.get("type", "categorical")
        if kind not in FEATURE_TYPES:
            remedy = f"use one of {', '.join(FEATURE_TYPES)}"
            raise InputError(f"{where}: unknown feature type", found=f"{kind!r} for {name!r}", remedy=remedy)
        features.append({"type": kind, **settings, "name": str(name)})
    return _validated({**document, "features": features}, where)


def _validated(document: object, where: str) -> FeatureRegistry:
    try:
        return FeatureRegistry.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {describe_validation_error(error, FeatureRegistry)}") from None


def describe_validation_error(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for pydantic's first complaint: where, what was expected, what was found, the closest known key."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        return str(inner)
    place = ".".join(str(part) for part in first["loc"]) or "top level"
    if first["type"] == "extra_forbidden":
        names = _field_names(model)
        close = difflib.get_close_matches(str(first["loc"][-1]), names, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(names))}"
        return f"unknown key {place!r}; {remedy}"
    return f"{place}: {first['msg'].lower()}; found {first['input']!r}"


def _field_names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for feature_type in FEATURE_TYPES.values() if "features" in names else ():
        names |= set(feature_type.model_fields)
    return names


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which plain YAML readers drop without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                found = f"{key!r} twice, again in line {line}"
                raise InputError("keys of a registry file must be unique", found=found, remedy="remove one")
        return super().construct_mapping(node, deep=deep)
