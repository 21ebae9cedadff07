"""The bundle format: writer, reader and verifier."""

from serving.bundle.bundle import Bundle, write_bundle

__all__ = ["Bundle", "write_bundle"]
