"""The verbs of the `muxrec` command, one file per verb."""
