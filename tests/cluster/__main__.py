"""`python -m tests.cluster`: a Ray cluster of two nodes on this machine's loopback, until Ctrl-C; docs/cluster.md."""

import contextlib
import signal

from tests.cluster.local import add_node, nodes


def main() -> None:
    cluster = nodes(include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=8265)
    try:
        second = add_node(cluster)
        raylet = second.all_processes["raylet"][0].process.pid
        print("Two nodes run, with 4 CPUs each by Ray's count. Stop them with Ctrl-C.", flush=True)  # noqa: T201
        print(f"Kill the second one: kill -9 {raylet}", flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
