"""Turn raw rows into a dataset directory."""
