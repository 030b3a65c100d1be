"""Which training examples made a language model say this?

The program `wherefrom` does the work; this package runs it and hands its artifacts to pyarrow and numpy without a copy where
that is possible. docs/python.md has examples, FORMAT.md every column.
"""

from wherefrom._binary import find_binary
from wherefrom._errors import Failed, NotInstalled, Refused, WherefromError, WherefromWarning
from wherefrom._artifact import Artifact, Report, open
from wherefrom._study import Plan, Run, Step, details, factors, path, plan, ranking, report, run, scores, tokens

__all__ = [
    "Artifact",
    "Failed",
    "NotInstalled",
    "Plan",
    "Refused",
    "Report",
    "Run",
    "Step",
    "WherefromError",
    "WherefromWarning",
    "details",
    "factors",
    "find_binary",
    "open",
    "path",
    "plan",
    "ranking",
    "report",
    "run",
    "scores",
    "tokens",
]
