"""The machine below the lab: its packages, processes, ports, and acting as root."""
