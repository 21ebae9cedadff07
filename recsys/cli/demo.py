"""`make demo`: MovieLens-100K from its raw ratings to scored probabilities, by the commands that a user would type.

A second call finds the data and the run done, and only shows the results.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from recsys.cli.options import console

DATA = "work/movielens-100k"
RUN, BUNDLE, SCORES = (f"work/{kind}/movielens-100k" for kind in ("runs", "bundles", "scores"))
COMMANDS = (
    f"python -m data.movielens --out {DATA}",
    f"muxrec train movielens_100k --data {DATA} --out {RUN}",
    f"muxrec export {RUN} --out {BUNDLE} --overwrite",
    f"muxrec verify {BUNDLE}",
    f"muxrec parity {RUN} {BUNDLE} --input {DATA}/raw/test.parquet",
    f"muxrec score {BUNDLE} --input {DATA}/raw/test.parquet --out {SCORES} --keep user_id,item_id --overwrite",
)


def main() -> None:
    """Print each command and run it; ends where one fails."""
    for command in COMMANDS[Path(DATA, "dataset.json").is_file() :]:
        console.print(f"\n$ {command}", style="bold", soft_wrap=True)
        words = shlex.split(command.replace("muxrec", "python -m experiments"))
        if code := subprocess.run([sys.executable, *words[1:]]).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
