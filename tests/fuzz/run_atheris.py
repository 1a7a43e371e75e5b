"""Coverage-guided fuzzing of one target by atheris: `make fuzz`, or `python -m tests.fuzz.run_atheris decode -h`."""

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app", "PIL", "python_multipart"]):
    from tests.fuzz import targets

TARGETS: dict[str, Callable[[bytes], object]] = {
    "decode": targets.decode_target,
    "multipart": targets.multipart_target,
}


def seeds(name: str) -> list[bytes]:
    """Return inputs to begin from."""
    pictures = [targets.small_picture(kind) for kind in targets.FORMATS]
    if name == "decode":
        return [*pictures, targets.small_picture("PNG", "P"), targets.small_picture("TIFF", "CMYK")]
    headers = b'Content-Disposition: form-data; name="files"; filename="a.bmp"\r\nContent-Type: image/bmp'
    return [targets.form([(headers, picture)]) for picture in pictures[:2]] + [targets.form([])]


def main() -> None:
    """Fuzz the target that the first argument names; the others go to libFuzzer, a folder for the corpus first."""
    name, corpus, *options = sys.argv[1:]
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (folder / f"seed-{number}").write_bytes(seed)
    # A hang is an input that takes 10 s; memory is bounded too.
    limits = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, *options, corpus], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
