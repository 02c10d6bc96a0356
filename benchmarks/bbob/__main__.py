"""`python -m benchmarks.bbob tune` chooses settings, `run` writes results, both in float64.

The lowest target is 1e-8 and values reach 1e7: float32 has too few digits for this.
"""

import argparse

import jax

from benchmarks.bbob import record


def main() -> None:
    """Tunes or runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bbob", description=__doc__)
    parser.add_argument("what", choices=("tune", "run"))
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    {"tune": record.tune, "run": record.run}[arguments.what]()


if __name__ == "__main__":
    main()
