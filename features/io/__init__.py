"""Read raw rows: parquet, delimited text, JSON lines, and frames in memory."""
