"""Make a dataset: one module a public dataset; the blobs themselves are never kept here."""
