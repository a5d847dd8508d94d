"""From a bare Python to the lab's own environment; the standard library only."""
