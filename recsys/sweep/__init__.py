"""Search over settings: the study, its workers and its report."""
