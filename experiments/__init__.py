"""Which combination: named runs, the `muxrec` command and its reports."""
