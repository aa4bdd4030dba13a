"""One target under atheris, in a process of its own: the fuzzer ends its process.

python -m tests.fuzz.one <target> <options of libFuzzer …>
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["realtime_db"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()
