"""Pieces of HTML that the report is made of; whatever comes from a result is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that scrolls sideways on a narrow screen; nothing without rows."""
    body = ["<tr>" + "".join(f"<td>{_whole(escape(str(cell)))}</td>" for cell in row) + "</tr>" for row in rows]
    if not body:
        return ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    # With a place in the order of the Tab key, a keyboard can scroll it too.
    inside = f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{inside}</table></div>'


def _whole(cell: str) -> str:
    """Keep a value and its interval on one line."""
    return cell.replace(" [", "\u00a0[").replace(", ", ",\u00a0") if cell.count("[") == 1 else cell


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain words."""
    return f"<p{f' class={kind!r}' if kind else ''}>{escape(words)}</p>"


def plot(uri: str, words: str) -> str:
    """A plot from its data URI; `words` say what it shows to who cannot see it."""
    return (
        f'<figure class="plot"><img src="{uri}" alt="{escape(words)}"><figcaption>{escape(words)}</figcaption></figure>'
    )


def folded(title: str, inside: str) -> str:
    """What is shown only when asked for."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def provenance_of(files: dict[str, dict[str, Any]]) -> str:
    """Command, versions and machine of each file, folded."""
    parts = []
    for name, result in files.items():
        facts = {"command": result.get("command", "not recorded"), "seed": result.get("seed", result.get("seeds"))}
        settings = result.get("settings") or {}
        facts |= {f"model {key}": settings[key] for key in ("model", "model_sha256", "source") if settings.get(key)}
        machine = result.get("machine") or {}
        facts["machine"] = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
        facts["versions"] = ", ".join(f"{key} {value}" for key, value in (result.get("versions") or {}).items())
        lines = "\n".join(f"{key}: {value}" for key, value in facts.items() if value not in (None, ""))
        parts.append(f"<h4>{escape(name)}.json</h4><pre>{escape(lines)}</pre>")
    return folded("Command, seeds and versions", "".join(parts))


def ranked_tiles(folder: Path, sheet: dict[str, Any]) -> str:
    """Tiles of the sheet of a fidelity result, with what is known of each; a sentence where its file is gone."""
    path = folder / Path(str(sheet["file"])).name  # never out of the folder
    if not path.is_file():
        return paragraph(f"The sheet {path.name} is not in the folder.")
    side, parts = int(sheet["tile"]), []
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
    for row, (rank, tiles) in enumerate(sheet["rows"].items()):
        parts.append(f"<h4>{escape(rank)} of the generated images</h4><div class='tiles'>")
        for column, tile in enumerate(tiles):
            data = BytesIO()
            box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
            pixels.crop(box).save(data, format="JPEG", quality=85, optimize=True)
            uri = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
            known = str(tile.get("prompt") or tile.get("name", ""))
            seed = f", seed {tile['seed']}" if "seed" in tile else ""
            words = f"SYNTHETIC: {known}{seed}, distance {tile['distance']:g}"
            parts.append(
                f'<figure><img src="{uri}" width="{side}" height="{side}" alt="{escape(f"{rank}, {words}")}">'
                f"<figcaption>{escape(words)}</figcaption></figure>"
            )
        parts.append("</div>")
    return "".join(parts) + paragraph(f"Ranked by {sheet['ranked_by']}.", "small")
