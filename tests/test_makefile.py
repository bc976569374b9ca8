"""With which Python ``make`` builds the virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASK = "include Makefile\nask:\n\t@echo $(PYTHON)\n"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def python(folder: Path, says: str) -> Path:
    """Something called python3 that answers whatever it is asked."""
    folder.mkdir()
    file = folder / "python3"
    file.write_text(f"#!/bin/sh\n{says}\n")
    file.chmod(0o755)
    return file


def chosen(own: Path, distributions: Path, **said: str) -> str:
    """What make takes with this python3 as the first of the PATH."""
    # Without what the make that runs this suite was told.
    told = {"PYTHON", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment |= {"PATH": f"{own.parent}:{environment['PATH']}", **said}
    command = ["make", "--silent", "-f", "-", f"DISTRIBUTIONS={distributions}", "ask"]
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, input=ASK, text=True, capture_output=True, check=True
    )
    return answer.stdout.strip()


@pytest.mark.parametrize(
    ("own", "distributions", "takes_distributions"),
    [
        ("echo '(3, 11) False'", "echo '(3, 11) False'", True),
        ("echo '(3, 11) True'", "echo '(3, 11) False'", False),  # as quick, and asked for
        ("echo '(3, 12) False'", "echo '(3, 11) False'", False),  # another version
        ("echo '(3, 11) False'", "echo 'No module named ensurepip' >&2; exit 1", False),
        ("exit 1", "echo '(3, 11) False'", False),  # what it says then is what make should say
        ("exit 1", "exit 1", False),
    ],
)
def test_a_slow_python_is_replaced_by_the_distributions_of_the_same_version(
    tmp_path, own, distributions, takes_distributions
):
    theirs = python(tmp_path / "distribution", distributions)
    taken = chosen(python(tmp_path / "own", own), theirs)
    assert taken == (str(theirs) if takes_distributions else "python3")


def test_a_distribution_without_python_changes_nothing(tmp_path):
    own = python(tmp_path / "own", "echo '(3, 11) False'")
    assert chosen(own, tmp_path / "none") == "python3"


def test_what_a_person_says_is_taken(tmp_path):
    slow = python(tmp_path / "own", "echo '(3, 11) False'")
    theirs = python(tmp_path / "distribution", "echo '(3, 11) False'")
    assert chosen(slow, theirs, PYTHON="python3.12") == "python3.12"


def test_pythons_themselves_say_what_is_compared(tmp_path):
    """This interpreter as either of them: it has its own version, and all of its modules."""
    for folder in ("own", "distribution"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    own, theirs = (tmp_path / folder / "python3" for folder in ("own", "distribution"))
    is_slow = "--enable-optimizations" not in str(sysconfig.get_config_var("CONFIG_ARGS"))
    assert chosen(own, theirs) == (str(theirs) if is_slow else "python3")
