"""Networks as users write them, each with a loss: none of them knows of factors."""

from flax import linen as nn
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

KEY = jax.random.key(0)


def data(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


TOKENS = jax.random.randint(KEY, (4, 10), 0, 40)


def log_likelihood(logits, tokens):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], tokens[:, 1:, None], -1)
    return -jnp.mean(chosen)


def linen_perceptron():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (24, 20):
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(7)(x)

    x, labels = data(8, 16), jnp.arange(8) % 7
    params = Net().init(KEY, x)
    return params, lambda p: -jnp.mean(jax.nn.log_softmax(Net().apply(p, x))[jnp.arange(8), labels])


def nnx_perceptron():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(16, 24, rngs=rngs), nnx.gelu, nnx.LayerNorm(24, rngs=rngs),
        nnx.Dropout(0.1, deterministic=True), nnx.Linear(24, 7, rngs=rngs),
    )  # fmt: skip
    graph, params = nnx.split(model, nnx.Param)
    x = data(8, 16)

    def loss(p):
        whole = nnx.merge(graph, p)
        out = whole(x)
        back = out @ whole.layers[4].kernel[...].T  # the same weights, the other way
        return jnp.mean((back @ whole.layers[0].kernel[...].T - x) ** 2)

    return params, loss


def convolutions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            x = nn.relu(nn.Conv(12, (3, 2), strides=2)(x))
            x = nn.relu(nn.Conv(12, (3, 3), kernel_dilation=2)(x))
            x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=12)(x))
            x = nn.GroupNorm(3)(x)
            x = nn.ConvTranspose(6, (3, 3), strides=(2, 2))(x)
            return nn.Dense(5)(nn.avg_pool(x, (2, 2)).reshape(x.shape[0], -1))

    x = data(3, 8, 8, 3)
    params = Net().init(KEY, x)
    return params, lambda p: jnp.mean(jax.nn.logsumexp(Net().apply(p, x), -1))


class Block(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, x, _=None):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2, qkv_features=self.width, deterministic=True
        )
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(hidden), None


class Language(nn.Module):
    scanned: bool
    remat: bool

    @nn.compact
    def __call__(self, tokens):
        embedding = nn.Embed(40, 16)
        x = embedding(tokens)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        if self.scanned:
            layers = nn.scan(
                block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = layers()(x, None)
        else:
            for _ in range(2):
                x, _ = block()(x)
        return embedding.attend(nn.LayerNorm()(x))


def language(scanned=True, remat=False):
    model = Language(scanned, remat)
    params = model.init(KEY, TOKENS)
    return params, lambda p: log_likelihood(model.apply(p, TOKENS), TOKENS)


def nnx_attention():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(40, 16, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 16, 16, decode=False, rngs=rngs)
            self.norm = nnx.RMSNorm(16, rngs=rngs)
            self.out = nnx.Linear(16, 40, rngs=rngs)

        def __call__(self, tokens):
            x = self.embed(tokens)
            return self.out(x + self.attention(self.norm(x)))

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    return params, lambda p: log_likelihood(nnx.merge(graph, p)(TOKENS), TOKENS)


def decoding():
    """One layer of attention that decodes greedily, with a cache, in a while loop."""
    params = {
        "embed": data(24, 16), "qkv": data(16, 48, seed=2) / 4, "out": data(16, 16, seed=3) / 4,
    }  # fmt: skip

    def loss(p):
        def step(carry):
            at, token, keys, values, total = carry
            x = p["embed"][token]
            query, key, value = jnp.split(x @ p["qkv"], 3)
            keys = lax.dynamic_update_index_in_dim(keys, key, at, 0)
            values = lax.dynamic_update_index_in_dim(values, value, at, 0)
            scores = jnp.where(jnp.arange(8) <= at, keys @ query, -1e9)
            x = x + (jax.nn.softmax(scores) @ values) @ p["out"]
            logits = p["embed"] @ x
            return at + 1, jnp.argmax(logits), keys, values, total + jax.nn.logsumexp(logits)

        start = jnp.int32(0), jnp.int32(3), jnp.zeros((8, 16)), jnp.zeros((8, 16)), jnp.zeros([])
        return lax.while_loop(lambda carry: carry[0] < 8, step, start)[-1]

    return params, loss


def recurrent(cell):
    model = nn.RNN(cell(18))
    x = data(3, 7, 12)
    params = model.init(KEY, x)
    return params, lambda p: jnp.mean(model.apply(p, x) ** 2)


def vision():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(16, (4, 4), strides=4, padding="VALID")(x)
            x = x.reshape(x.shape[0], -1, 16)
            token = self.param("token", nn.initializers.normal(0.1), (1, 1, 16))
            x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
            x = x + self.param("positions", nn.initializers.normal(0.1), (1, x.shape[1], 16))
            x, _ = Block()(x)
            return nn.Dense(5)(x[:, 0])

    x = data(3, 12, 12, 3)
    params = Net().init(KEY, x)
    return params, lambda p: jnp.mean(jax.nn.logsumexp(Net().apply(p, x), -1))


def experts():
    """A mixture of experts: each token goes to two of four."""
    params = {"gate": data(12, 4), "up": data(4, 12, 20) / 4, "down": data(4, 20, 12, seed=2) / 4}
    x = data(9, 12, seed=3)

    def loss(p):
        weights, chosen = lax.top_k(jax.nn.softmax(x @ p["gate"]), 2)
        routed = jnp.sum(jax.nn.one_hot(chosen, 4) * weights[..., None], 1)
        hidden = jax.nn.relu(jnp.einsum("td,edh->eth", x, p["up"]))
        out = jnp.einsum("eth,ehd,te->td", hidden, p["down"], routed)
        return jnp.mean((out - x) ** 2)

    return params, loss


def program():
    """What else a leaf can meet, some of which forms it."""
    params = {"v": data(12, 12) / 4, "w": data(12, 12, seed=2) / 4, "t": data(4, 6, 12, seed=3) / 4}
    x = data(5, 12, seed=4)

    def loss(p):
        v, w, t = p["v"], p["w"], p["t"]
        h = lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ w), x)
        h = lax.cond(jnp.sum(h) > 0, lambda h: h @ v, lambda h: h @ v.T, h)
        h = h @ (jnp.round(v * 8) / 8)  # rounded: formed
        h = jax.jit(lambda h, w: h @ w)(h, w) @ (w @ v) @ (2 * v - w / 3)
        first, second = jnp.split(v, 2)
        h = h @ w[:, :6] @ first + h @ jnp.flip(second, 1).T @ second
        h = h @ jnp.concatenate([v, w], 1) @ jnp.concatenate([w, v], 0)
        z = jnp.einsum("bc,ack->bak", h[:, :6], t)
        back = jnp.einsum("bak,ack->bc", z, t)
        wide = jnp.einsum("bak,xk->bax", z, w.reshape(3, 4, 12).reshape(12, 12))
        rows = jnp.sum(w.at[jnp.array([1, 3, 40])].get(mode="fill", fill_value=1.0))
        rows = rows + jnp.sum(v[:, jnp.array([1, 3])])
        row = lax.dynamic_slice(v, (jnp.int32(2), jnp.int32(0)), (1, 12))
        return (
            jnp.mean(z**2) + jnp.mean(back) + jnp.mean(wide) + jnp.sum(v.sum(0) @ w)
            + rows + jnp.mean(row) + jnp.sum(t, (0, 1))[0]
        )  # fmt: skip

    return params, loss


MODELS = {
    "linen_perceptron": linen_perceptron,
    "nnx_perceptron": nnx_perceptron,
    "convolutions": convolutions,
    "scanned_language": language,
    "rematerialised_language": lambda: language(remat=True),
    "unrolled_language": lambda: language(scanned=False, remat=True),
    "nnx_attention": nnx_attention,
    "decoding": decoding,
    "gru": lambda: recurrent(nn.GRUCell),
    "lstm": lambda: recurrent(nn.OptimizedLSTMCell),
    "vision": vision,
    "experts": experts,
    "program": program,
}
