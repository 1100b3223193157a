"""`python -m evaluation WHAT`: measures to JSON, and to the README. `--help` lists them.

Exit status 0, or 2 with one line on standard error when what was asked cannot be done.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .grammar import make_parser
from .report import provenance, write_json

# Where the function of a command has another name than the command; each lies in the module of the command's name.
_FUNCTIONS = {"adapters": "compare_adapters", "history": "add_to_history", "sheet": "make_sheet"}


def measure(what: str, options: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Run one command; returns its result and where the JSON goes."""
    out = Path(options.pop("out"))
    function = _FUNCTIONS.get(what, what.replace("-", "_"))
    if what == "fidelity":
        function = _fidelity(options, out)
    elif what == "adapters":
        options["earlier"] = out if options.pop("keep") else None
    elif what == "history":
        options["path"] = out
    elif what == "explain":
        options["sheets"] = options["sheets"] or out.parent
    elif what == "volumes":
        options |= {"counts": options.pop("real_counts"), "sheet": out.with_suffix(".jpg")}
    elif what == "stacks":
        options["sheet"] = out.with_suffix(".jpg")
    elif what == "sheet":
        options["out"], out = out, out.with_suffix(".json")
    # Imported only now: `--help` and mistakes in the command line should not wait for torch.
    module = importlib.import_module(f".{what.replace('-', '_')}", __package__)
    return getattr(module, function)(**options), out


def _fidelity(options: dict[str, Any], out: Path) -> str:
    """Choose between folders and packs."""
    options["sheet"] = out.with_suffix(".jpg") if options["sheet"] else None
    if options["real"]:
        if options.pop("per_class"):
            raise ValueError("`per_class` is for the packs: with `real`, all classes with 20 images are measured")
        return "fidelity_of_folders"
    if options["modality"] is None:
        raise ValueError("`modality` is not given: name one, or a folder with `real`")
    del options["real"]
    return "fidelity"


def fill_in(results: Path, training: Path, readme: Path) -> int:
    """Write the table of results into the README."""
    from .table import results_table, with_table

    text = with_table(readme.read_text(encoding="utf-8"), results_table(results, training))
    part = readme.with_name(readme.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(readme)
    print(readme)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = vars(make_parser().parse_args(arguments))
    what = options.pop("what")
    try:
        if what == "table":
            return fill_in(**options)
        if what == "report":
            from .html_report import write_report

            print(write_report(**options))
            return 0
        if options.get("batch", 1) < 1:
            raise ValueError(f"`batch` is {options['batch']}: numbers from 1 are allowed")
        result, path = measure(what, options)
        print(write_json(path, {**result, **provenance()}))
    except (ValueError, KeyError, OSError, ImportError) as error:
        print(f"{what}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{what}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
