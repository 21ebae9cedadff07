"""Studies: the runs that answer each question, and the pages that show the answers."""
