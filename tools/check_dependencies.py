"""Says whether a Python can run wattline: its version, and each dependency that is missing or too old by name.

Run by ``make VENV=0`` with the Python that the user gives, so it needs the standard library alone and stays readable
for a Python too old for wattline itself. Exit code 0: all there; 2: something is missing, one line each on stderr.
"""

import argparse
import importlib
import importlib.metadata
import os
import shutil
import sys

OLDEST = (3, 11)
CANDIDATES = ("python3.13", "python3.12", "python3.11")


def say(line):
    """Write one line to stderr."""
    sys.stderr.write(line + "\n")


def wrong_python():
    """The complaint about this Python's version, or an empty string."""
    if sys.version_info[:2] >= OLDEST:
        return ""
    found = [name for name in CANDIDATES if shutil.which(name)]
    hint = f"PYTHON={found[0]}" if found else "PYTHON=<path of a newer python3>"
    return (
        f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old: wattline needs {OLDEST[0]}.{OLDEST[1]} or "
        f"newer; give another to make with {hint}"
    )


def requirement_class():
    """``packaging``'s parser of requirements: installed, or the copy that pip or setuptools carries."""
    for home in ("packaging", "pip._vendor.packaging", "setuptools._vendor.packaging"):
        try:
            return importlib.import_module(home + ".requirements").Requirement
        except ImportError:
            continue
    return None


def needed(pyproject, extras, build):
    """The requirements that a pyproject.toml states, as text.

    Args:
        pyproject: path of the file.
        extras: names of optional groups to include.
        build: whether to include what building the package needs.
    """
    import tomllib

    with open(pyproject, "rb") as handle:
        data = tomllib.load(handle)
    project = data.get("project", {})
    wanted = list(project.get("dependencies", []))
    groups = project.get("optional-dependencies", {})
    for extra in extras:
        if extra not in groups:
            raise SystemExit(f"{pyproject} has no optional group {extra!r}; it has {', '.join(sorted(groups))}")
        wanted.extend(groups[extra])
    if build:
        wanted.extend(["pip", *data.get("build-system", {}).get("requires", [])])
    return wanted


def complaint(text, parse):
    """What is wrong with one requirement here, or an empty string."""
    if parse is None:  # a Python with neither packaging, pip nor setuptools: names can be told, versions cannot
        name = text
        for i, letter in enumerate(text):
            if not (letter.isalnum() or letter in "-_."):
                name = text[:i]
                break
        specifier, marker = None, None
    else:
        requirement = parse(text)
        name, specifier, marker = requirement.name, requirement.specifier, requirement.marker
    if marker is not None and not marker.evaluate():
        return ""
    wanted = f" {specifier}" if specifier else ""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"missing: {name}{wanted}"
    if specifier and not specifier.contains(found, prereleases=True):
        return f"does not fit: {name} {found} is installed, wattline needs {name}{wanted}"
    return ""


def main(arguments=None):
    """Check, complain on stderr, return the exit code."""
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="say which dependencies of wattline this Python lacks")
    parser.add_argument("--pyproject", default=os.path.join(here, os.pardir, "pyproject.toml"))
    parser.add_argument("--extra", action="append", default=[], help="an optional group to check as well")
    parser.add_argument("--build", action="store_true", help="check what building the package needs as well")
    parser.add_argument("--python-only", action="store_true", help="check the version of Python and nothing else")
    options = parser.parse_args(arguments)
    problem = wrong_python()
    if problem:
        say(problem)
        return 2
    if options.python_only:
        return 0
    parse = requirement_class()
    complaints = [complaint(text, parse) for text in needed(options.pyproject, options.extra, options.build)]
    complaints = [line for line in complaints if line]
    for line in complaints:
        say(line)
    if complaints:
        say(f"{len(complaints)} of wattline's dependencies cannot be used from {sys.executable}")
        say("install them there, give another Python with PYTHON=..., or let make build an environment with VENV=1")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
