"""The verbs of the `muxrec` command. Heavy imports stand inside the verbs, so that scoring starts without torch."""
