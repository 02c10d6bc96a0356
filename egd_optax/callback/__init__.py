"""Plain Python as fitness: a metric of scikit-learn, a simulator, another process.

JAX traces `value_fn`. It calls it once, with placeholders for the parameters, to record the
operations. Code that needs numbers, as NumPy does, fails there. Code that prints numbers prints
the placeholders.
"""

from egd_optax.callback.value_fn import host_value_fn

__all__ = ["host_value_fn"]
