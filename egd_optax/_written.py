"""Operators of the library print as the call that makes them."""

import dataclasses
from typing import Any, ClassVar


class Written:
    """Mix-in for a frozen dataclass: its `repr` is the call that makes it.

    The operators are no NamedTuples, which are pytrees and equal to every tuple of the same
    numbers. They have no `__call__`: `optax.inject_hyperparams` takes every callable for a
    schedule.
    """

    made_by: ClassVar[str]

    def __repr__(self: Any) -> str:
        fields = (
            f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self)
        )
        return f"{self.made_by}({', '.join(fields)})"


def settle(operator: object, **fields: object) -> None:
    """Replaces fields of a frozen dataclass, while it is being made, by their checked values."""
    for name, value in fields.items():
        object.__setattr__(operator, name, value)
