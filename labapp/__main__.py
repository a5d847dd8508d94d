"""``python3 -m labapp``: any Python 3 reads this file, and one that is too old is told so."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything was installed)
    sys.exit(
        "labapp: this is Python %d.%d at %s, and the lab needs 3.11 or newer.\n"  # noqa: UP031
        "Install a newer one beside it (python.org, 'brew install python', 'sudo apt-get install "
        "python3.11'),\nthen start the lab with it: python3.11 -m labapp start"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

from labapp.machine.bootstrap import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
