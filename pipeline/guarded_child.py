"""Have a stranger's file looked at by one of our functions in a process of its own, under limits: for servers.

Decoders are C code, and a file can be made to crash them or to keep them busy. Here that ends the child alone: its
owner gets one sentence, and nobody else anything. The child writes no file, has none of the environment's secrets, and
what it sends back is for its caller to check like any other input.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from . import dicom_limits

MAX_SECONDS = 120.0  # from start to answer, on a machine that has other things to do
MAX_WORK = 30  # seconds of a processor; one is usual
MAX_MEMORY = 3 * 2**30  # address space: an image of all the pixels allowed fits
_PACKAGE = Path(__file__).resolve().parent
_START = f"import sys; sys.path[:] = sys.argv[4:]; from {_PACKAGE.name}.guarded_child import be_child; "
_START += "be_child(*sys.argv[1:4])"
# What Python and its libraries need to start; tokens and keys stay behind.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL", "TMPDIR", "TEMP")


def ask_child(
    function: str,
    argument: int,
    path: str | os.PathLike[str],
    *,
    named: str,
    seconds: float = MAX_SECONDS,
    memory: int = MAX_MEMORY,
    longest: int = 2**20,
) -> bytes:
    """Call a function of this package in a child process that has a file as its standard input.

    Parameters
    ----------
    function
        `module.function`: takes a binary stream and `argument`, returns the bytes of its answer.
    argument
        A number for it.
    path
        The file.
    named
        What errors call it: the name of the caller's argument.
    seconds
        The child is ended after so long, and after 30 seconds of work.
    memory
        Bytes of address space that the child may have (not held on Windows and macOS).
    longest
        Bytes of an answer; a child that says as much is ended.

    Raises
    ------
    ImageInputError
        The file cannot be opened, or the child crashed or was ended for what it took or said: in one sentence that
        repeats nothing of the file.
    """
    command = [sys.executable, "-P", "-c", _START, function, str(argument), str(memory)]
    # The parent's own places of modules, made absolute: the child must find the same ones, wherever it is started.
    command += [str(_PACKAGE.parent), *(os.path.abspath(place) for place in sys.path if place)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    missing = f"`{named}` is a path at which there is no file that can be opened."
    late = threading.Event()
    with (
        dicom_limits.attempt(lambda: open(path, "rb"), missing) as file,
        subprocess.Popen(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=_PACKAGE.parent
        ) as child,
    ):

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            assert child.stdout is not None
            data = child.stdout.read(longest)
            if len(data) == longest:
                child.kill()
            status = child.wait()
        finally:
            timer.cancel()
            child.kill()  # where this was broken off; else it has ended already
    if late.is_set():
        raise dicom_limits.ImageInputError(f"`{named}` takes longer than the {seconds:g} seconds allowed to read.")
    if status:
        raise dicom_limits.ImageInputError(
            f"`{named}` cannot be read within the time and memory allowed; the file may be damaged."
        )
    return data


def be_child(function: str, argument: str, memory: str) -> None:
    """Be the child: give standard input to the function, and its answer to standard output."""
    limit(int(memory))
    module, _, name = function.rpartition(".")
    answer = getattr(importlib.import_module(f".{module}", __package__), name)(sys.stdin.buffer, int(argument))
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)  # at once: what a damaged file may have left behind in a decoder is not tidied up


def limit(memory: int) -> None:
    """Hold this process, from now on, to so many bytes of address space, 30 seconds of work and no file written."""
    try:
        import resource
    except ImportError:  # Windows: the time alone is held
        return
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),  # no file may be written
        (resource.RLIMIT_CORE, 0),  # and no memory dumped after a crash: it holds the image
        (resource.RLIMIT_CPU, MAX_WORK),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS knows no limit on address space
            continue
