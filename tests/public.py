"""What is public, and what its documentation says."""

import importlib
import inspect

import egd_optax

MODULES = (
    "noise", "sigma", "recombine", "accept", "execution", "presets", "callback", "ask_tell",
    "checkpoint", "factored", "diagnose", "flax",
)  # fmt: skip


def public():
    """All that users call or subclass, by name, with where its example may stand."""
    modules = [importlib.import_module(f"egd_optax.{name}") for name in MODULES]
    for module in (egd_optax, *modules):
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
            listed = name in module.__all__ if hasattr(module, "__all__") else own
            if listed and (inspect.isclass(value) or inspect.isfunction(value)):
                # What a rule of one's own is made of is shown together, in the module.
                together = module.__doc__ if module.__name__ == "egd_optax.factored" else ""
                yield f"{module.__name__}.{name}", inspect.getdoc(value) + together
