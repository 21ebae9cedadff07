"""What an example means: feature types, hashing, encoding; numpy and polars only."""
