"""`muxrec prepare`: raw files to a dataset directory, or a draft of a registry."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from features.errors import InputError
from features.io.csv_format import changed_format
from recsys.cli.options import Json, Overwrite, show


def prepare(
    registry: Annotated[Path | None, typer.Option(help="Registry file (YAML).")] = None,
    train: Annotated[list[str] | None, typer.Option(help="Training files: path, directory or glob.")] = None,
    valid: Annotated[
        list[str] | None, typer.Option(help="Validation files; by default rows are held out of train.")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Dataset directory to write.")] = None,
    infer: Annotated[Path | None, typer.Option(help="Print a draft of a registry for this file instead.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of the label; by default the registry's, or a guess for a draft.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Character between the fields of a csv file, such as `;`, `|` or `tab`.")
    ] = None,
    null_value: Annotated[
        list[str] | None, typer.Option(help="Text that means a missing value in csv files; can be repeated.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the training rows to hold out where --valid is absent.")
    ] = 0.1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn raw log files into a dataset directory.

    Reads parquet, csv, tsv and JSON lines files, gzipped or not. A registry says what each column is; `muxrec prepare
    --infer FILE > registry.yaml` drafts one.
    """
    if infer is not None:
        from features.infer.draft import draft_registry

        draft = draft_registry(infer, label=label, csv=changed_format(None, separator, null_value))
        sys.stdout.write(json.dumps({"registry": draft}) + "\n" if as_json else draft)
        return
    from features.dataset.prepare import prepare as run
    from features.registry import FeatureRegistry

    if registry is None or not train or out is None:
        raise InputError(
            "prepare needs --registry, --train and --out", remedy="or --infer FILE, which drafts a registry"
        )
    splits = {"train": train, "valid": valid or [], "test": test or []}
    given = FeatureRegistry.from_yaml(registry)
    if label is not None and label != given.label:
        given = given.with_settings(label=label, label_rule=None)
    if (csv := changed_format(given.csv, separator, null_value)) != given.csv:
        given = given.with_settings(csv=csv)
    info = run(given, splits, out, holdout=holdout, overwrite=overwrite, progress=not as_json)
    rows = {name: split.rows for name, split in info.splits.items()}
    rates = {name: round(split.label_rate, 5) for name, split in info.splits.items()}
    unknown = list(info.unknown_columns)
    show(as_json, {"dataset": str(out), "digest": info.digest, "rows": rows, "label_rate": rates, "unused": unknown})
