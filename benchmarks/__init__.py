"""Speed and memory, each beside its floor and its peer; see README.md here. Nobody imports this package."""
