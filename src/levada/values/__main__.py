"""`python -m levada.values write|check`: the schema and the reference page from the models and the defaults."""

from __future__ import annotations

import sys

from levada.values import reference, schema
from levada.values.chart import ROOT

GENERATED = {schema.FILE: schema.text, reference.FILE: reference.text}


def main(action: str) -> int:
    """Write what is generated, or say what of it is out of date."""
    stale = [file for file, text in GENERATED.items() if not file.exists() or file.read_text() != text()]
    for file in stale:
        if action == "write":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(GENERATED[file]())
        else:
            print(f"{file.relative_to(ROOT)} is out of date: run python -m levada.values write", file=sys.stderr)
    return 1 if stale and action == "check" else 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
