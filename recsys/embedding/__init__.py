"""The embedding table: its addressing, its rows in training, its masks and its optimisers."""
