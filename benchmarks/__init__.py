"""Speed and memory, each with its floor and its peer; see README.md here. No package imports this one."""
