"""MLflow's model registry: versions of a registered model, the aliases that point to them, and their bundles.

A version is a bundle that `log_model` logged.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mlflow import MlflowClient, get_tracking_uri
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from features.errors import InputError
from features.files import replace_directory, sha256_of, temporary_directory_beside
from recsys.tracking.store import connect_existing, shown_uri, store_errors, tracking_uri, unless_absent
from serving.bundle import Bundle
from serving.bundle.manifest import MANIFEST, read_manifest

KEPT_VERSIONS = 4
"""Fetched versions per model that stay on the disk, as a service that follows an alias must not fill it."""
ABOUT = "Models that `muxrec promote` registered; an alias says which one is served."
STORE_REMEDY = "set MLFLOW_TRACKING_URI to the store that holds it"


class RegisteredVersion(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str
    logged_model: str | None
    """Identifier of its LoggedModel; None for a version that was registered from plain files."""
    tags: Mapping[str, str]


class ModelRegistry:
    """The registered models of a store; raises `InputError`s, without passwords from the store's address."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self.client = client
        self.store = shown_uri(uri)

    @staticmethod
    def open(uri: str | None = None) -> "ModelRegistry":
        """The registry at `uri`, by default that of the environment; raises `InputError` if there is no store."""
        uri = tracking_uri(uri)
        return ModelRegistry(connect_existing(uri), uri)

    def version(self, name: str, number: str | None = None, *, alias: str | None = None) -> RegisteredVersion:
        """A version by its number or alias; raises `InputError` for an unknown one."""
        what = f"{name}@{alias}" if alias else f"{name}/{number}"
        with _registry_errors(f"expected the registered model models:/{what}"):
            if alias:
                found = self.client.get_model_version_by_alias(name, alias)
            else:
                found = self.client.get_model_version(name, str(number))
        return _version(found)

    def holder(self, name: str, alias: str) -> RegisteredVersion | None:
        """The version that an alias points to; None if there is no such model or alias yet."""
        with _registry_errors(f"cannot look up {name}@{alias}"):
            model = unless_absent(lambda: self.client.get_registered_model(name))
            return self.version(name, str(model.aliases[alias])) if model and alias in model.aliases else None

    def logged_model(self, run_id: str, bundle: Bundle) -> str | None:
        """Identifier of a run's LoggedModel with the same model_id as the bundle; None if there is none."""
        with _registry_errors(f"cannot list the models of run {run_id}"):
            experiment = self.client.get_run(run_id).info.experiment_id
            for model in self.client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
                with TemporaryDirectory() as temporary, suppress(InputError):
                    inside = _bundle_inside(model.artifact_location, Path(temporary), model.model_id)
                    if read_manifest(Path(temporary) / inside).model_id == bundle.model_id:
                        return model.model_id
        return None

    def register(
        self, name: str, logged_model: str, run_id: str, tags: Mapping[str, str], about: str | None = None
    ) -> RegisteredVersion:
        """A LoggedModel's version, which is created where there is none; so a second call changes nothing.

        `about` is its description in MLflow's pages.
        """
        with _registry_errors(f"cannot register a version of {name}"):
            with suppress(MlflowException):  # it exists, or another process creates it now
                self.client.create_registered_model(name, description=ABOUT)
            for found in self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
                if (version := _version(found)).logged_model == logged_model:
                    return version
            options = {"tags": dict(tags), "description": about, "model_id": logged_model}
            return _version(self.client.create_model_version(name, f"models:/{logged_model}", run_id, **options))

    def tag(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with _registry_errors(f"cannot write tags of {version.name}/{version.number}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(version.name, version.number, key, value)

    def set_alias(self, alias: str, version: RegisteredVersion) -> None:
        """Move an alias to a version."""
        with _registry_errors(f"cannot set the alias {alias!r}"):
            self.client.set_registered_model_alias(version.name, alias, version.number)

    def fetch(
        self, name: str, number: str | None, *, alias: str | None = None, cache: Path, current: Path | None = None
    ) -> Path:
        """A version's bundle as a directory of `cache`, named by version and content.

        A cached one is verified again unless it is `current`, and fetched again if it is damaged.
        """
        version = self.version(name, number, alias=alias)
        what = f"models:/{version.name}/{version.number}"
        folder = cache / re.sub(r"[^\w.-]|^\.+", "_", version.name)
        with _registry_errors(f"cannot fetch {what}"):
            source = self.client.get_model_version_download_uri(version.name, version.number)
            with temporary_directory_beside(folder / version.number) as temporary:
                inside = _bundle_inside(source, temporary, what)
                target = folder / f"{version.number}-{sha256_of(temporary / inside / MANIFEST)[:16]}"
                if current is not None and target == current.absolute() and target.is_dir():
                    os.utime(target)  # still in use: later fetches must not evict it
                    return target
                if not _is_whole(target):
                    download_artifacts(artifact_uri=f"{source}/{inside}".rstrip("/"), dst_path=str(temporary / "all"))
                    Bundle.open(temporary / "all" / Path(inside).name)
                    try:
                        replace_directory(temporary / "all" / Path(inside).name, target)
                    except OSError:  # another process may have put the same there
                        if not target.is_dir():
                            raise
        os.utime(target)
        versions = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for path in sorted(versions, key=lambda path: -path.stat().st_mtime)[KEPT_VERSIONS:]:
            shutil.rmtree(path, ignore_errors=True)
        return target


def _bundle_inside(source: str, temporary: Path, what: str) -> str:
    """Folder of a version's artifacts that holds a bundle; its manifest is downloaded to that folder of `temporary`."""
    # `log_model` puts it below "artifacts", under the bundle directory's name.
    with _registry_errors(f"cannot read {what}"):
        below = [Path(one.path).name for one in list_artifacts(artifact_uri=f"{source}/artifacts") if one.is_dir]
    for inside in (*(f"artifacts/{name}" for name in below), "bundle", ""):
        place = temporary / inside
        place.mkdir(parents=True, exist_ok=True)
        with suppress(MlflowException, OSError):
            download_artifacts(artifact_uri=f"{source}/{inside}".rstrip("/") + f"/{MANIFEST}", dst_path=str(place))
            return inside
    remedy = "register a model that `muxrec train` or `muxrec promote` logged"
    raise InputError(f"{what}: expected a muxrec bundle", found="another model, or no file", remedy=remedy)


def _is_whole(target: Path) -> bool:
    try:
        Bundle.open(target)
    except InputError:
        return False
    return True


def _version(found: ModelVersion) -> RegisteredVersion:
    source = found.source or ""
    logged = found.model_id or (source.removeprefix("models:/") if source.startswith("models:/") else None)
    return RegisteredVersion(found.name, str(found.version), logged, dict(found.tags or {}))


@contextmanager
def _registry_errors(expected: str) -> Iterator[None]:
    """Turn MLflow's errors into an `InputError` that names the store without a password."""
    with store_errors(expected, "check the name, and MLFLOW_TRACKING_URI"):
        try:
            yield
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "not found" not in str(error.message):
                raise
            remedy = f"{STORE_REMEDY}; {shown_uri(get_tracking_uri())} was asked"
            raise InputError(expected, found="no such model, version or alias", remedy=remedy) from None
