"""Learn a model: one multiplexed table, two-stream networks, their trainer (torch, torchrec)."""

import logging

import features as features  # before mlflow

# Importing torchrec makes torch.fx warn about a function that torchrec calls; nobody who reads it can act on it.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
