"""Write report.html again from a report.json, in the same folder.

python -m prumux.optimizer.cli.report report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.report.build import write_html
from prumux.optimizer.report.encoding import report_of

from .console import guarded

MODULE = "prumux.optimizer.cli.report"


def main(arguments: list[str]) -> int:
    """Write the page and return the exit code.

    Raises:
        UsageError: there is not exactly one argument, or the file is no report.
    """
    if len(arguments) != 1:
        raise UsageError(f"write: python -m {MODULE} report.json")
    path = Path(arguments[0])
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"'{path}' is no report: {error}") from error
    write_html(report_of(values, str(path)), path.parent)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(MODULE, main, None, "repeat the command"))
