"""Learn a model: one multiplexed table, two-stream networks, their trainer (torch, torchrec)."""
