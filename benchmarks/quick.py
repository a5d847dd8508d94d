"""Print what the quick commands cost: the CPU seconds of each, the best of some runs.

``python benchmarks/quick.py [RUNS]``. The bounds are those of the project: a command that only
looks must come at once, whatever else this machine does meanwhile.
"""

from __future__ import annotations

import resource
import subprocess
import sys

COMMAND = "from labapp.cli import main; main({})"
CASES = {
    "python": ("pass", None),
    "status": (COMMAND.format(["status"]), 0.8),
    "doctor": (COMMAND.format(["doctor"]), 0.8),
    "progress": (COMMAND.format(["progress"]), 0.8),
    "inspect localhost:1/x": (COMMAND.format(["inspect", "localhost:1/x"]), 0.8),
    "import open_lab, charts": ("from labapp import open_lab, charts", 1.5),
}


def cpu_seconds(code: str) -> float:
    """Run a Python program and return the CPU seconds of it and of what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for name, (code, bound) in CASES.items():
        best = min(cpu_seconds(code) for _ in range(runs))
        print(f"{name:<25} {best:5.2f} s", f"(at most {bound} s)" if bound else "")
