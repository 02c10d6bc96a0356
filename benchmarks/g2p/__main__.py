"""`python -m benchmarks.g2p tune` chooses settings, `run` writes results, `time` prices."""

import argparse

from benchmarks.g2p import record


def main() -> None:
    """Tunes, runs or measures times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.g2p", description=__doc__)
    parser.add_argument("what", choices=("tune", "run", "time"))
    parser.add_argument("--seeds", type=int, default=record.SEEDS, help="runs of each arm")
    arguments = parser.parse_args()
    if arguments.what == "run":
        record.run(arguments.seeds)
    else:
        {"tune": record.tune, "time": record.time}[arguments.what]()


if __name__ == "__main__":
    main()
