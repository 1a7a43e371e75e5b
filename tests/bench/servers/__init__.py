"""The peers' servers, each for an environment of its own; started by `tests.bench.contenders`."""
