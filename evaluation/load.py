"""The app under load: many programs at once against a real server on loopback.

Each client asks for images with seeds and a patient of its own, and looks whether what it gets is what it asked for.
Some send an image, some ask for more than is allowed, some cancel. Afterwards: what is left on disk, and how much
memory the server needed.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image

from pipeline.dicom_provenance import read_recipe

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("chest X-ray, PA view", "axial T1 brain MRI", "head CT, brain window", "blood smear, neutrophil")
KINDS = {"generate": 10, "transform": 2, "too much": 2, "cancel": 2}
POLITE = ("queue is full", "too busy", "allowed", "maximum value")  # what a refusal says
START_SECONDS = 300
PATIENCE = 300  # seconds that a client waits for any answer


def load(
    *,
    model: str | Path = "pipeline",
    clients: int = 30,
    seconds: float = 600,
    steps: int = 2,
    keep: int = 600,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the app and ask it from many sides at once.

    Parameters
    ----------
    model
        Folder or Hub id of the pipeline that the app serves.
    clients
        Programs at once, each in a thread.
    seconds
        For how long they ask; what was asked until then is waited for.
    steps
        Denoising steps of each request.
    keep
        Seconds after which the server deletes uploads and results: longer than a request waits in its queue.
    seed
        Of what the clients do.

    Raises
    ------
    ValueError
        A number is out of range, or the server does not start.
    """
    bounds = {"clients": (clients, 1, 500), "seconds": (seconds, 1, 86400), "steps": (steps, 1, 100)}
    for name, (value, low, high) in (bounds | {"keep": (keep, 1, 86400)}).items():
        if not low <= value <= high:
            raise ValueError(f"`{name}` is {value}: allowed are numbers from {low} to {high}")
    with tempfile.TemporaryDirectory(prefix="load-") as temporary:
        folder = Path(temporary)
        with _Server(model, folder / "server", keep) as server:
            idle = server.memory()
            users = [_User(number, server.address, folder, steps, seed) for number in range(clients)]
            stop = time.monotonic() + seconds
            threads = [threading.Thread(target=user.ask_until, args=(stop,), daemon=True) for user in users]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            alive = server.is_alive()
            after_load, most = server.memory(), server.files()
            deadline = time.monotonic() + 2 * keep + 30
            while server.files() and time.monotonic() < deadline:
                time.sleep(1)
            left, peak = server.files(), server.memory("VmHWM")
            kinds = Counter(Path(name).suffix for name in _files(server.folder))
        left_after_stop = len(_files(folder / "server"))
        counts: Counter[str] = sum((user.counts for user in users), Counter())
        waits = sorted(wait for user in users for wait in user.waits)
        return {
            "clients": clients,
            "seconds": seconds,
            "steps": steps,
            "seed": seed,
            "requests": sum(counts.values()),
            "outcomes": dict(sorted(counts.items())),
            "wrong_results": counts["wrong result"],
            "errors": sorted({text for user in users for text in user.errors})[:20],
            "refusals": sorted({text for user in users for text in user.refusals})[:20],
            "seconds_of_a_request": {"median": float(np.median(waits)), "most": waits[-1]} if waits else None,
            "server_alive": alive,
            "memory_mib": {"idle": idle, "after": after_load, "peak": peak},
            "files": {"when_the_load_ended": most, "left": left, "left_kinds": dict(kinds)}
            | {"left_after_stop": left_after_stop},
        }


class _Server:
    """The app in a process of its own, on a free port, with a folder of its own for everything temporary."""

    def __init__(self, model: str | Path, folder: Path, keep: int) -> None:
        self.folder = folder
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        model = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
        own = {"SYNTHETIC_DICOM_MODEL": model, "SYNTHETIC_DICOM_KEEP_SECONDS": str(keep), "TMPDIR": str(folder)}
        own |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_TEMP_DIR": str(folder)}
        self._log = open(folder.parent / "log.txt", "wb")  # noqa: SIM115 - closed at the end
        self._process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=os.environ | own, stdout=self._log, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> _Server:
        import httpx

        deadline = time.monotonic() + START_SECONDS
        while self.is_alive() and time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if httpx.get(self.address + "config", timeout=5).status_code == 200:
                    return self
            time.sleep(0.5)
        self.__exit__()
        raise ValueError("`model` cannot be served; does `python app.py` run with it?")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(2)  # as Ctrl-C does, so that it tidies up
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def memory(self, what: str = "VmRSS") -> float | None:
        """Mebibytes; None where the system does not tell."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(what + ":")), None)

    def files(self) -> int:
        return len(_files(self.folder))


def _files(folder: Path) -> list[str]:
    """Names of the files below a folder; `os.walk`, as the server may delete a folder while it is looked at."""
    return [name for _, _, names in os.walk(folder) for name in names]


class _User:
    """One client: asks, and looks at what it gets."""

    def __init__(self, number: int, address: str, folder: Path, steps: int, seed: int) -> None:
        self.number, self.steps = number, steps
        self.counts: Counter[str] = Counter()
        self.errors: set[str] = set()
        self.refusals: set[str] = set()
        self.waits: list[float] = []
        self._address = address
        self._downloads = folder / f"client-{number}"
        self._random = random.Random(f"{seed} {number}")
        self._upload = folder / f"upload-{number}.png"
        Image.fromarray(np.full((64, 64), number % 256, np.uint8)).save(self._upload)

    def ask_until(self, stop: float) -> None:
        import gradio_client

        client = None
        while time.monotonic() < stop:
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            start = time.monotonic()
            try:
                client = client or gradio_client.Client(
                    self._address,
                    verbose=False,
                    download_files=self._downloads,
                    analytics_enabled=False,
                    httpx_kwargs={"timeout": PATIENCE},
                )
                outcome = self._ask(client, kind)
            except Exception as error:  # whatever a server may answer is counted
                words = " ".join(str(error).split()) or type(error).__name__
                polite = any(part in words.lower() for part in POLITE) and "Traceback" not in words
                if not polite:
                    self.errors.add(f"{kind}: {words[:200]}")
                    client = None
                else:
                    self.refusals.add(words[:200])
                full = "queue is full" in words.lower()
                outcome = "refused: queue full" if full else "refused: limit" if polite else "error"
                if full:
                    time.sleep(self._random.uniform(1, 3))
            else:
                if outcome == "right result":
                    self.waits.append(time.monotonic() - start)
            self.counts[outcome] += 1

    def _ask(self, client: Any, kind: str) -> str:
        import gradio_client

        seed, prompt = self._random.randrange(2**31), self._random.choice(PROMPTS)
        name = f"Client^{self.number}"
        options: dict[str, Any] = {"seed": seed, "steps": self.steps, "patient_name": name}
        if kind == "transform":
            options |= {"image": gradio_client.handle_file(str(self._upload)), "strength": 0.5, "prompt": prompt}
            return self._look(client.predict(api_name="/image_to_image", **options), prompt, seed, name)
        options["prompt"] = prompt
        if kind == "too much":
            options |= self._random.choice(({"steps": 1000}, {"number_of_images": 99}, {"guidance": 1e9}))
        if kind == "cancel":
            job = client.submit(api_name="/text_to_image", **(options | {"steps": 100}))
            time.sleep(self._random.uniform(0, 2))
            job.cancel()
            return "cancelled"
        answer = client.predict(api_name="/text_to_image", **options)
        return "not refused" if kind == "too much" else self._look(answer, prompt, seed, name)

    def _look(self, answer: Any, prompt: str, seed: int, name: str) -> str:
        paths, recipes = answer
        dataset = pydicom.dcmread(paths[0])
        recipe = read_recipe(dataset)
        mine = (
            recipe is not None
            and (recipe.seed, recipe.prompt) == (seed, prompt)
            and [(each["seed"], each["prompt"]) for each in recipes] == [(seed, prompt)]
            and str(dataset.PatientName).endswith(name)
        )
        for path in paths:
            Path(path).unlink(missing_ok=True)
        return "right result" if mine else "wrong result"
