"""Which platform a program is traced for."""

import jax


def platform() -> str:
    """The platform that the program is for: "cpu", "gpu", "tpu".

    A mesh of another platform, set with `jax.set_mesh` to compile ahead of time, counts as that.
    """
    target = jax.sharding.get_abstract_mesh().abstract_device
    here: str = jax.local_devices()[0].platform
    return here if target is None else str(target.platform)
