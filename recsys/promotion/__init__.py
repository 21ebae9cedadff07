"""Compare two models on the same rows, and promote one."""
