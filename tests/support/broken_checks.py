"""Checks for the doctor that end as checks must not."""

import os
import sys
import time

from distmil.pipeline.doctor.finding import OK, Finding


def good(text: str) -> list[Finding]:
    sys.stderr.write("noise of a library\n")
    return [Finding(OK, "good", text)]


def raising() -> list[Finding]:
    raise ImportError("libfoo.so.1: cannot open shared object file\nand more")


def exiting() -> list[Finding]:
    sys.exit(3)


def crashing() -> list[Finding]:
    os.abort()


def hanging() -> list[Finding]:
    time.sleep(600)
    return []
