"""Draft a registry from a file or a frame."""

from features.infer.draft import draft_registry, infer_registry

__all__ = ["draft_registry", "infer_registry"]
