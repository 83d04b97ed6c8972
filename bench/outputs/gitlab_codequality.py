"""GitLab's code quality report: each check that did not pass, shown in the merge request.

The format is a subset of Code Climate's: description, check_name, fingerprint, severity and a place in the
repository. A measurement has no line of source; .gitlab-ci.yml, which every such repository has and which holds the
gate's job, stands in. The fingerprint names the check, not its value: the same check failing again is the same finding.
"""

import hashlib
import json

from tailcut.bench.load_values import LoadResult
from tailcut.bench.text import one_line
from tailcut.results import BenchResult, Check, Verdict

HELP = "findings in a GitLab merge request (artifacts:reports:codequality)"
_SEVERITY = {"fail": "critical", "inconclusive": "major"}


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    seen: dict[str, int] = {}
    found = []
    for check in verdict.checks:
        seen[check.name] = seen.get(check.name, 0) + 1
        if check.outcome != "pass":
            found.append(_finding(check, seen[check.name]))
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _finding(check: Check, time: int) -> dict[str, object]:
    identity = json.dumps([check.engine, check.name, time])
    return {
        "description": one_line(f"{check.outcome}: {check.sentence}"),
        "check_name": one_line(f"tailcut gate: {check.name}"),
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "severity": _SEVERITY[check.outcome],
        "location": {"path": ".gitlab-ci.yml", "lines": {"begin": 1}},
    }
