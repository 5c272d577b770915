"""The batch job as a script, for ``ray job submit -- python jobs/run.py HEAD... --input URI --output URI``.

It takes the arguments of ``raybert run``.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from raybert.cli import main
except ModuleNotFoundError:  # submitted with --working-dir, without an installed package
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from raybert.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
