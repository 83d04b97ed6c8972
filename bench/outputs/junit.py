"""JUnit XML: one test case a check, as Jenkins' schema (junit-10.xsd of its xUnit plugin) and GitLab read it.

An inconclusive check is an `error`, not `skipped`: every reader shows a suite whose cases were skipped as green, and
what could not be decided is no pass. JUnit's own word for it fits: a test that could not be carried out, beside
`failure`, a test whose answer is no.
"""

import xml.etree.ElementTree as ET

from tailcut.bench.load_values import LoadResult
from tailcut.bench.text import one_line
from tailcut.results import BenchResult, Check, Verdict

HELP = "test results, for the test tab of GitLab, Jenkins, Azure, ..."
_KINDS = {"fail": "failure", "inconclusive": "error"}


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    checks = verdict.checks or (Check("gate", "inconclusive", None, None, None, None, "nothing was judged"),)
    counts = {
        "tests": str(len(checks)),
        "failures": str(sum(check.outcome == "fail" for check in checks)),
        "errors": str(sum(check.outcome == "inconclusive" for check in checks)),
    }
    root = ET.Element("testsuites", {"name": "tailcut", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": "tailcut gate", **counts, "skipped": "0", "time": "0"})
    _properties(suite, verdict, result)
    for check in checks:
        _case(suite, check)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _properties(suite: ET.Element, verdict: Verdict, result: BenchResult) -> None:
    facts = {
        "outcome": verdict.outcome,
        "note": verdict.note,
        "machine": result.machine.fingerprint,
        "processor": result.machine.cpu,
        "commit": result.machine.commit or "",
        "made by": result.made_by,
    }
    properties = ET.SubElement(suite, "properties")
    for name, value in facts.items():
        ET.SubElement(properties, "property", {"name": name, "value": one_line(value)})


def _case(suite: ET.Element, check: Check) -> None:
    # a point separates packages in a class name, and readers group by it
    where = "tailcut.gate." + (one_line(check.engine).replace(".", "_") or "package")
    case = ET.SubElement(suite, "testcase", {"name": one_line(check.name), "classname": where, "time": "0"})
    sentence = one_line(check.sentence)
    if check.outcome in _KINDS:
        kind = ET.SubElement(case, _KINDS[check.outcome], {"message": sentence, "type": check.outcome})
        kind.text = sentence
    else:
        ET.SubElement(case, "system-out").text = sentence
