"""What must be on this machine: Python, an engine, free ports, JupyterLab."""
