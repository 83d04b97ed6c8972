"""A virtual machine or a container: what a measurement then cannot see."""

from typing import Final

from tailcut.bench.probes import Finding, Group, System

TITLE: Final = "virtualisation"
GROUP: Final[Group] = "limits"
MEASURES: Final = False
_MARKS: Final = {".dockerenv": "Docker", "run/.containerenv": "Podman", "run/systemd/container": "a container"}
_WORDS: Final = {"kubepods": "Kubernetes", "docker": "Docker", "lxc": "LXC", "containerd": "containerd"}


def probe(system: System) -> Finding:
    box, machine = container(system), virtual_machine(system)
    facts = {"container": box or None, "virtual_machine": machine or None}
    if not machine:
        return Finding("good", f"in a container ({box}) on bare metal" if box else "bare metal", "", facts)
    where = f"a virtual machine ({machine})" + (f", in a container ({box})" if box else "")
    advice = (
        "Neighbours on the host take cache and bandwidth without being seen here: compare in one session only, and take an "
        "instance with dedicated cores for a release gate."
    )
    return Finding("hint", where, advice, facts)


def container(system: System) -> str:
    """What kind of container this is, "" for none."""
    text = system.text("proc/1/cgroup") or ""
    for word, name in _WORDS.items():
        if word in text:
            return name
    for mark, name in _MARKS.items():
        if (system.root / mark).exists():
            return name
    return ""


def virtual_machine(system: System) -> str:
    """The hypervisor's name as far as the system tells, "" for bare metal."""
    if "hypervisor" not in system.flags():
        return ""
    maker, product = system.text("sys/class/dmi/id/sys_vendor"), system.text("sys/class/dmi/id/product_name")
    return " ".join(part for part in (maker, product) if part) or "the hypervisor does not say which"
