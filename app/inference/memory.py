"""Keep the process's memory from growing when models are replaced and requests are cut off."""

import contextlib
import ctypes
import gc


def settle() -> None:
    """Set what is alive now apart from garbage collection; call it once, when the service has started.

    What a start leaves behind stays for good. Without it each full collection is short, and comes
    often: a cancelled request's frames refer to one another, and hold its pictures until then.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Collect garbage, and return freed memory to the system where the C library can."""
    gc.collect()
    # glibc keeps what ONNX Runtime has freed, several hundred MiB for a model, in the arenas of its threads.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
