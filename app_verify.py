"""The Verify tab: upload a file, see what it says of itself.

A stranger's file is read in a process of its own, under limits on time, memory and writing: a bad one costs its owner a
sentence, and nobody else anything.
"""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr

from app_parts import sentence, toasts

MAX_SECONDS, MAX_WORK, MAX_MEMORY = 120, 30, 3 * 2**30
_ROOT = Path(__file__).resolve().parent
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")
_CHILD = """
import json, sys
sys.path[:] = sys.argv[3:]
try:
    import resource
    for what, most in (("AS", int(sys.argv[2])), ("FSIZE", 0), ("CORE", 0), ("CPU", int(sys.argv[1]))):
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
        except (ValueError, OSError):
            pass
except ImportError:
    pass
from pipeline.verification import verify
try:
    found = verify(sys.stdin.buffer.read())
except ValueError as error:
    answer = {"error": str(error)}
else:
    answer = {"ok": found.ok, "lines": found.in_words(), "kind": found.kind, "watermark": found.watermark == "found"}
    answer["made_here"] = found.made_here
print(json.dumps(answer))
"""
_BAD = "the file cannot be read within the time and memory allowed; it may be damaged"


def verify_guarded(path: str, *, seconds: float = MAX_SECONDS, memory: int = MAX_MEMORY) -> dict[str, Any]:
    """Verify a file in a child process: `ok`, `lines`, `kind`, `watermark` and `made_here` of what was found.

    Raises
    ------
    ValueError
        In one sentence that repeats nothing of the file, also where the child crashed or was ended.
    """
    command = [sys.executable, "-P", "-c", _CHILD, str(MAX_WORK), str(memory), str(_ROOT)]
    command += [os.path.abspath(place) for place in sys.path if place]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    try:
        with open(path, "rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, timeout=seconds, env=environment, cwd=_ROOT, check=True
            )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ValueError(_BAD) from None
    if "error" in answer:
        raise ValueError(str(answer["error"])[:400])
    return answer


def verdict(found: dict[str, Any]) -> str:
    """Say it in a heading and a table, as HTML."""
    if found["ok"]:
        sign, words = "✓", "Synthetic, made here, marked and unaltered"
    elif found["made_here"] or found["watermark"]:
        sign, words = "!", "Synthetic, but not as it was made" if found["made_here"] else "Synthetic, by its watermark"
    else:
        sign, words = "?", "Nothing sure shows that it was made here"
    rows = "".join(
        "<tr><th scope='row'>{}</th><td>{}</td></tr>".format(*(html.escape(part) for part in line.partition(": ")[::2]))
        for line in found["lines"]
    )
    return f"<h3>{sign} {words}</h3><table><tbody>{rows}</tbody></table>"


def show_verdict(path: str | None) -> str:
    """Verify an upload for the page."""
    if not path:
        return ""
    with toasts():
        try:
            return verdict(verify_guarded(path))
        except ValueError as error:
            return f"<h3>✗ Cannot be verified</h3><p>{html.escape(sentence(str(error)), quote=False)}</p>"


def verify_tab() -> gr.Tab:
    """Lay out the tab."""
    with gr.Tab("Verify", elem_id="verify-tab") as tab:
        upload = gr.UploadButton("Upload or drop a DICOM, PNG or JPEG file", size="md", elem_id="verify-upload")
        answer = gr.HTML("", elem_id="verdict")
        gr.HTML(
            "Says whether an image was made here, bears all marks, and was altered since; an invisible watermark is "
            "found also when the header is gone. An image of unknown origin is not proven real.",
            elem_classes="note",
        )
        upload.upload(show_verdict, upload, answer, api_visibility="private")
    return tab
