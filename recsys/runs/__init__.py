"""The life of a run: its directory, training, finish, evaluation, export, parity and pruning."""
