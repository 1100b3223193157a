"""The Verify tab: upload a file, see what it says of itself.

A stranger's file is read in a process of its own, under limits on time, memory and writing: a bad one costs its owner a
sentence, and nobody else anything.
"""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from app_parts import sentence, toasts
from pipeline.verification import verify_guarded


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
