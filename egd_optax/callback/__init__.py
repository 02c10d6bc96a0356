"""Plain Python as fitness: a metric of scikit-learn, a simulator, another process.

JAX traces `value_fn`: it is called once, with stand-ins for the parameters, to find out what to
compute. What looks at numbers, as NumPy does, fails there; what prints them prints the stand-ins.
"""

from egd_optax.callback.value_fn import host_value_fn

__all__ = ["host_value_fn"]
