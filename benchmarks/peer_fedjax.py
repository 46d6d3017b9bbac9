# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = [
#     "fedjax==0.0.17",
#     "jax==0.4.30",        # older and newer ones are slower under FedJAX: see README.md
#     "jaxlib==0.4.30",
#     "dm-haiku==0.0.12",   # FedJAX imports it; newer ones want a newer JAX
#     "numpy<2",
# ]
# ///
"""Google's FedJAX on the CPU: its compiled ``for_each_client``, clipping inside the client's compiled end.

Written after ``fedjax.algorithms.fed_avg``, which knows neither clipping nor noise nor equal weights. Batches are
cut before the clock starts. The variant ``pmap`` trains as many clients at once as there are cores.
"""

from __future__ import annotations

import os
from typing import Any

import measure

args = measure.arguments()
if args.variant == "pmap":  # must be set before JAX starts
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}"

import fedjax  # noqa: E402 - after XLA_FLAGS
import jax  # noqa: E402 - after XLA_FLAGS
import jax.numpy as jnp  # noqa: E402 - after XLA_FLAGS
import numpy as np  # noqa: E402 - after XLA_FLAGS
import workloads  # noqa: E402 - after XLA_FLAGS

Weights = list[jax.Array]


def logits_of(model: str) -> Any:
    """``(weights, x [batch, 784]) -> logits [batch, 10]``."""

    def convolve(h: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        out = jax.lax.conv_general_dilated(h, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(out + bias)

    def softmax(w: Weights, x: jax.Array) -> jax.Array:
        return x @ w[0] + w[1]

    def mlp(w: Weights, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]

    def cnn(w: Weights, x: jax.Array) -> jax.Array:
        h = convolve(convolve(x.reshape(-1, 28, 28, 1), w[0], w[1]), w[2], w[3])
        # The same as haiku's max_pool here, whose gradient XLA runs slower on a CPU.
        h = h.reshape(-1, 12, 2, 12, 2, 64).max((2, 4))
        return mlp(w[4:], h.reshape(-1, workloads.FEATURES))

    return {"softmax": softmax, "mlp": mlp, "cnn": cnn}[model]


def trainer(w: workloads.Workload) -> Any:
    """Local training of each client of a cohort: ``(weights, clients) -> (id, (update, right answers))…``."""
    logits = logits_of(w.model)

    def loss(weights: Weights, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = logits(weights, batch["x"])
        picked = jnp.take_along_axis(jax.nn.log_softmax(out), batch["y"][:, None], 1)
        return -picked.mean(), (out.argmax(1) == batch["y"]).sum()

    def client_init(shared: Weights, client_input: jax.Array) -> Any:
        return shared, client_input

    def client_step(state: Any, batch: dict[str, jax.Array]) -> Any:
        weights, right = state
        grads, hits = jax.grad(loss, has_aux=True)(weights, batch)
        return [a - w.learning_rate * g for a, g in zip(weights, grads, strict=True)], right + hits

    def client_final(shared: Weights, state: Any) -> Any:
        delta = [b - a for a, b in zip(shared, state[0], strict=True)]
        if w.clip is not None:
            delta = fedjax.tree_util.tree_clip_by_global_norm(delta, w.clip)
        return delta, state[1]

    return fedjax.for_each_client(client_init, client_step, client_final)


def server_step(w: workloads.Workload) -> Any:
    """``(weights, sum of updates, key) -> weights``, with the noise."""
    stddev = (w.clip or 0.0) * w.noise_multiplier

    @jax.jit
    def step(weights: Weights, total: Weights, key: jax.Array) -> Weights:
        keys = jax.random.split(key, len(weights))
        if stddev:
            total = [t + stddev * jax.random.normal(k, t.shape) for t, k in zip(total, keys, strict=True)]
        return [a + t / w.cohort for a, t in zip(weights, total, strict=True)]

    return step


def main() -> None:
    data = workloads.load(args.workload, args.data)
    w = data.workload
    if args.variant == "pmap":
        fedjax.set_for_each_client_backend("pmap")
    train, step = trainer(w), server_step(w)
    weights = [jnp.asarray(value) for value in data.initial_weights()]
    cohorts = data.cohorts(args.rounds)
    hparams = fedjax.BatchHParams(batch_size=w.batch)
    batches = {
        c: list(fedjax.ClientDataset({"x": data.features[c], "y": data.labels[c]}).batch(hparams))
        for c in {client for cohort in cohorts for client in cohort}
    }
    rounds, keys = measure.Rounds(), jax.random.split(jax.random.PRNGKey(0), args.rounds)
    for cohort, key in zip(cohorts, keys, strict=True):
        with rounds:
            total, hits = None, []
            clients = [(c, batches[c], jnp.zeros((), jnp.int32)) for c in cohort]
            for _, (delta, right) in train(weights, clients):
                total = delta if total is None else fedjax.tree_util.tree_add(total, delta)
                hits.append(right)
            weights = jax.block_until_ready(step(weights, total, key))
            right_answers = int(np.sum(jax.device_get(hits)))
    figures = rounds.figures()
    logits = jax.jit(logits_of(w.model))
    parts = [logits(weights, data.test_features[i : i + 1000]).argmax(1) for i in range(0, 10_000, 1000)]
    measure.write(
        args.out,
        figures,
        ("fedjax", "jax", "numpy"),
        train_accuracy=right_answers / (w.cohort * w.examples),
        test_accuracy=float((np.concatenate(parts) == data.test_labels).mean()),
    )


if __name__ == "__main__":
    main()
