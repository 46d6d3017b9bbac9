"""TensorFlow Federated: ``tff.learning.algorithms`` on its native runtime, with its own Gaussian aggregator.

Runs in the project's environment, which holds TFF. Clients' ``tf.data`` datasets are made before the clock starts.
"""

from __future__ import annotations

import collections
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import measure
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import workloads


def logits_of(model: str) -> Any:
    """``(weights, x [batch, 784]) -> logits [batch, 10]``."""

    def softmax(w: Any, x: Any) -> Any:
        return tf.matmul(x, w[0]) + w[1]

    def mlp(w: Any, x: Any) -> Any:
        return tf.matmul(tf.nn.relu(tf.matmul(x, w[0]) + w[1]), w[2]) + w[3]

    def cnn(w: Any, x: Any) -> Any:
        h = tf.reshape(x, [-1, 28, 28, 1])
        h = tf.nn.relu(tf.nn.conv2d(h, w[0], 1, "VALID") + w[1])
        h = tf.nn.relu(tf.nn.conv2d(h, w[2], 1, "VALID") + w[3])
        return mlp(w[4:], tf.reshape(tf.nn.max_pool2d(h, 2, 2, "VALID"), [-1, workloads.FEATURES]))

    return {"softmax": softmax, "mlp": mlp, "cnn": cnn}[model]


def functional_model(data: workloads.Data) -> Any:
    """The workload's model as ``tff.learning.models.FunctionalModel``; counts right answers."""
    logits = logits_of(data.workload.model)

    @tf.function
    def predict(weights: Any, x: Any, training: bool = True) -> Any:
        return logits(weights[0], x)

    @tf.function
    def loss(output: Any, label: Any, sample_weight: Any = None) -> Any:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=output))

    @tf.function
    def nothing() -> Any:
        return collections.OrderedDict(right=0.0, seen=0.0)

    @tf.function
    def count(state: Any, labels: Any, batch_output: Any, sample_weight: Any = None) -> Any:
        hits = tf.equal(tf.argmax(batch_output.predictions, 1, labels.dtype), labels)
        return collections.OrderedDict(
            right=state["right"] + tf.reduce_sum(tf.cast(hits, tf.float32)),
            seen=state["seen"] + tf.cast(tf.size(labels), tf.float32),
        )

    @tf.function
    def finish(state: Any) -> Any:
        return collections.OrderedDict(accuracy=state["right"] / state["seen"])

    return tff.learning.models.FunctionalModel(
        initial_weights=(tuple(data.initial_weights()), ()),
        predict_on_batch_fn=predict,
        loss_fn=loss,
        metrics_fns=(nothing, count, finish),
        input_spec=(
            tf.TensorSpec([None, workloads.PIXELS], tf.float32),
            tf.TensorSpec([None], tf.int32),
        ),
    )


def main() -> None:
    args = measure.arguments()
    data = workloads.load(args.workload, args.data)
    w = data.workload
    tff.backends.native.set_sync_local_cpp_execution_context()
    aggregator = tff.aggregators.UnweightedMeanFactory()
    if w.clip is not None:
        aggregator = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            noise_multiplier=w.noise_multiplier, clients_per_round=w.cohort, clip=w.clip
        )
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        functional_model(data),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(w.learning_rate),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=aggregator,
    )
    cohorts = data.cohorts(args.rounds)
    datasets = {
        c: tf.data.Dataset.from_tensor_slices((data.features[c], data.labels[c])).batch(w.batch)
        for c in {client for cohort in cohorts for client in cohort}
    }
    state = process.initialize()
    rounds = measure.Rounds()
    for cohort in cohorts:
        with rounds:
            output = process.next(state, [datasets[c] for c in cohort])
            state = output.state
    figures = rounds.figures()
    weights = process.get_model_weights(state).trainable
    logits = logits_of(w.model)
    parts = [logits(weights, data.test_features[i : i + 1000]) for i in range(0, 10_000, 1000)]
    measure.write(
        args.out,
        figures,
        ("tensorflow-federated", "tensorflow", "numpy"),
        train_accuracy=float(output.metrics["client_work"]["train"]["accuracy"]),
        test_accuracy=float((np.concatenate(parts).argmax(1) == data.test_labels).mean()),
    )


if __name__ == "__main__":
    main()
