"""Studies: which runs answer which question, and the pages that show it."""
