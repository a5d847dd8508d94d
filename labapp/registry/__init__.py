"""The protocol of a registry: what it stores, a client of it, and the container that serves it."""
