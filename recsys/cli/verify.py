"""`muxrec verify`: a bundle's files and golden rows."""

import typer

from recsys.cli.options import BundleUri, Json, show


def verify(bundle: BundleUri, as_json: Json = False) -> None:
    """Check that a bundle is whole and scores as it should.

    Compares the hash of each file, and scores the bundle's golden rows again; exit 1 if the scores differ.
    """
    from recsys.tracking.model_uri import resolve_bundle
    from serving.scorer import Scorer

    scorer = Scorer(resolve_bundle(bundle))
    difference, tolerance = scorer.verify(), scorer.bundle.golden_tolerance
    about = {"bundle": bundle, "model_id": scorer.bundle.model_id}
    ok = difference <= tolerance
    show(as_json, {**about, "max_abs_diff": difference, "tolerance": tolerance, "ok": ok})
    if not ok:
        raise typer.Exit(1)
