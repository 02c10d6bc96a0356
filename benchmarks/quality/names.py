"""Names of problems and methods as tables and pictures show them."""

PROBLEMS = {
    "ternary_absmax": "Ternary weights, bad scale",
    "ternary_mse": "Ternary weights, good scale",
    "int4_digits": "Four-bit weights",
    "ternary_1d": "Ternary convolutional network",
    "spiking_digits": "Spiking network",
    "sealed_chip_08": "Photonic chip, errors of 0.8 rad",
    "sealed_chip_12": "Photonic chip, errors of 1.2 rad",
    "f1_imbalanced": "F1 of a rare class",
    "zero_one_imbalanced": "Balanced error of a rare class",
    "levy_100": "Levy's function, 100 dimensions",
    "rastrigin_100": "Rastrigin's function, 100 dimensions",
    "ackley_100": "Ackley's function, 100 dimensions",
    "pinn_convection": "Convection equation",
    "label_noise": "Wrong labels",
    "friedman": "Friedman's regression",
    "diabetes": "Diabetes regression",
    "parity": "Parity",
    "rnn_adding": "Recurrent network that adds",
    "lorenz_96": "Forcings of Lorenz-96",
    "pendulum": "Pendulum",
    "delayed_pendulum": "Pendulum, late reward",
    "mountain_car": "Car on a hill",
    "acrobot": "Two links to swing up",
}
METHODS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "sam": "SAM",
    "noisy_sgd": "SGD with noise",
    "restarts": "Adam, restarts",
    "many_restarts": "Adam, many restarts",
    "adam_threshold": "Adam, tuned threshold",
    "adam_threshold_on_validation": "Adam, threshold tuned on validation",
    "straight_through": "Straight-through",
    "straight_through_3x": "Straight-through, 3 times the budget",
    "straight_through_more_data": "Straight-through, more data",
    "straight_through_then_es": "Straight-through, then evolution",
    "layers_read_out": "Gradients of read-out layers",
    "noise_injection": "Noise injection",
    "spsa": "SPSA",
    "evosax_open_es": "OpenAI-ES of evosax",
    "evosax_sep_cma_es": "Separable CMA-ES of evosax",
    "evosax_pgpe": "PGPE of evosax",
    "evosax_snes": "SNES of evosax",
    "openai_es": "OpenAI-ES",
    "sketch": "SGD + cycles as first sketched",
    "elite_mean_guard": "SGD + guarded mean of elites",
    "sgd_burst": "SGD, cycles at the end",
    "adam_burst": "Adam, cycles at the end",
    "metric": "Adam + metric cycles",
    "metric_on_straight_through": "Straight-through + metric cycles",
    "global_": "Adam + global search",
    "global_then_base": "Global search, then Adam",
    "global_adaptive": "Global search by path length, then Adam",
    "global_one_fifth_then_base": "Global search by the one-fifth rule, then Adam",
    "global_separable_then_base": "Global search with separable noise, then Adam",
    "safe": "Adam + safe cycles",
    "light": "Light cycles",
    "share_30": "Cycles on three tenths",
    "ppo": "PPO",
    "metric_on_ppo": "PPO + metric cycles",
    "evolution": "Evolution alone",
    "as_it_is": "As it is",
}
ENDINGS = {
    "_carried_3x": ", 3 times as long",
    "_carried_10x": ", 10 times as long",
    "_equal_time": ", equal time",
    "_random_ranks": ", random ranks",
    "_less_noise": ", less noise",
    "_rarer": ", rarer",
}


def problem(name: str) -> str:
    """A problem, in words."""
    return PROBLEMS.get(name, _words(name))


def method(name: str) -> str:
    """A method, in words; a variant without a name of its own is read from its identifier."""
    for ending, words in ENDINGS.items():
        if name not in METHODS and name.endswith(ending):
            return method(name.removesuffix(ending)) + words
    return METHODS.get(name, _words(name))


def _words(name: str) -> str:
    return name.replace("_", " ").strip().capitalize()
