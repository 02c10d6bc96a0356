"""`python -m benchmarks.g2p tune` chooses settings, `run` writes results."""

import argparse

from benchmarks.g2p import record


def main() -> None:
    """Tunes or runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.g2p", description=__doc__)
    parser.add_argument("what", choices=("tune", "run"))
    parser.add_argument("--seeds", type=int, default=record.SEEDS, help="runs of each arm")
    arguments = parser.parse_args()
    if arguments.what == "tune":
        record.tune()
    else:
        record.run(arguments.seeds)


if __name__ == "__main__":
    main()
