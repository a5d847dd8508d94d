"""A small shop that answers with prices."""

__version__ = "1.0"
