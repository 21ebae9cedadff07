"""The one table: its rows, its addressing, its optimisers."""
