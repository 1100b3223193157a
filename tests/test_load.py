"""The app under load: the command, what is left on disk, and that what nobody waits for stops."""

from __future__ import annotations

import os
import time

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

import app_sweep  # noqa: E402
from evaluation.load import load  # noqa: E402

from .app_server import load_app, served  # noqa: E402


def test_many_clients_get_their_own_and_nothing_is_left(tiny_folder):
    result = load(model=tiny_folder, clients=5, seconds=15, steps=1, keep=40)
    assert result["server_alive"] and result["wrong_results"] == 0 and result["errors"] == []
    assert result["outcomes"]["right result"] > 0 and "not refused" not in result["outcomes"]
    assert result["files"]["when_the_load_ended"] > 0
    assert (result["files"]["left"], result["files"]["left_after_stop"]) == (0, 0)


@pytest.mark.parametrize("bad", [{"clients": 0}, {"seconds": 0}, {"steps": 101}, {"keep": 0}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` is"):
        load(**bad)


def test_a_model_that_cannot_be_served(tmp_path):
    with pytest.raises(ValueError, match="`model` cannot be served"):
        load(model=tmp_path, clients=1, seconds=1)


def test_a_program_that_cancels_stops_the_work_and_a_full_queue_says_so(tiny_folder):
    app = load_app(tiny_folder)
    steps: list[int] = []
    # Each step takes a while, so that what is cancelled is far from its end on a fast machine and on a busy one.
    hook = app.PIPE.unet.register_forward_hook(lambda *_: (steps.append(1), time.sleep(0.02))[2:] or None)
    app.demo.queue(max_size=2, default_concurrency_limit=2, api_open=False)
    try:
        with served(app) as address:
            client = gradio_client.Client(address, verbose=False, httpx_kwargs={"timeout": 300})
            asked = {"prompt": "head CT", "api_name": "/text_to_image", "steps": 100, "number_of_images": 8}
            job = client.submit(**asked)
            while not steps:
                time.sleep(0.01)
            waiting = [client.submit(**asked) for _ in range(4)]
            refused = [
                other
                for other in waiting
                if isinstance(other.exception(timeout=0.1) if wait(other) else None, Exception)
            ]
            assert refused and all("queue is full" in str(other.exception()).lower() for other in refused)
            for other in (*waiting, job):
                other.cancel()
            client.predict(**(asked | {"steps": 1, "number_of_images": 1, "seed": 3}))
            assert len(steps) < 800  # one job has as many, and two were at work
    finally:
        hook.remove()


def wait(job) -> bool:
    """Whether a job has ended soon."""
    for _ in range(100):
        if job.done():
            return True
        time.sleep(0.02)
    return False


def test_sweeping_leaves_what_is_young_or_not_ours(tmp_path):
    for name in ("synthetic-dicom-old/a.dcm", "synthetic-dicom-young/a.dcm", "other/a.dcm"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    for name, data in (("tmpempty", b""), ("tmpfull", b"x"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    for path in tmp_path.iterdir():
        if "young" not in path.name:
            os.utime(path, (1, 1))
    app_sweep.sweep(tmp_path, 60)
    assert {path.name for path in tmp_path.iterdir()} == {"synthetic-dicom-young", "other", "tmpfull", "empty"}
