"""Adapters, and how the embedded base and they were trained."""
