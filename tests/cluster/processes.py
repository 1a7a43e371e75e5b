"""Finding Ray's workers among the processes of this machine."""

from pathlib import Path


def worker_of(command: int, title: str) -> int:
    """Return a worker, by the title that Ray gives its process, of the Ray that a command has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(title.encode()) and command in _ancestors(int(folder.name)):
            return int(folder.name)
    raise AssertionError(f"no {title} is running")


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
        process = int(stat.rpartition(")")[2].split()[1])
        found.append(process)
    return found
