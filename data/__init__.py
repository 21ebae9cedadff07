"""Scripts that build datasets: one module per public dataset. The data itself is never stored in the repository."""
