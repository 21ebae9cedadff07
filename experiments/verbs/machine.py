"""Verbs about this machine: doctor."""

import json
import sys

import typer

from experiments.verbs.common import Json, console


def doctor(as_json: Json = False) -> None:
    """Say what is installed, what works here, and the remedy for what does not."""
    from experiments.doctor import diagnose, diagnosis_table

    checks = diagnose()
    if as_json:
        sys.stdout.write(json.dumps([check.model_dump() for check in checks]) + "\n")
    else:
        console.print(diagnosis_table(checks))
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)
