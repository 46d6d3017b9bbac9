from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from privfed.errors import SettingError
from privfed.models.build import build_model
from privfed.models.functional import cross_entropy

pytestmark = pytest.mark.slow  # TFF takes 4 s to import

SHAPE, CLASSES = (8, 8, 1), 10


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (5, *SHAPE)).astype(np.float32)
    return tf.constant(x), tf.constant(rng.integers(0, CLASSES, 5).astype(np.int32))


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet", "cnn"])
def test_models_to_tff_and_back(name):
    from privfed.models.tff import from_functional_model, to_functional_model

    model = build_model(name, SHAPE, CLASSES)
    x, y = batch()
    vector = model.initial_vector(3)
    functional = to_functional_model(model, seed=3)
    logits = functional.predict_on_batch(functional.initial_weights, x)
    np.testing.assert_allclose(logits, model.logits(model.unflatten(vector), x), rtol=1e-5, atol=1e-6)
    assert float(functional.loss(logits, y)) == pytest.approx(float(cross_entropy(logits, y)))

    back = from_functional_model(functional, "back")
    assert (back.name, back.input_shape, back.classes, back.dimension) == ("back", SHAPE, 10, model.dimension)
    assert (back.dense_input, back.output_bias) == (model.dense_input, model.output_bias)
    np.testing.assert_array_equal(back.initial_vector(0), vector)
    other = model.initial_vector(4) + np.float32(0.01)
    np.testing.assert_allclose(
        back.logits(back.unflatten(other), x), model.logits(model.unflatten(other), x), rtol=1e-5, atol=1e-6
    )


def test_models_tff_metrics_are_means_over_examples():
    import tensorflow_federated as tff

    from privfed.models.tff import to_functional_model

    model = build_model("mlp", SHAPE, CLASSES)
    functional = to_functional_model(model, model.initial_vector(1))
    state, losses, right = functional.initialize_metrics_state(), [], []
    for seed in (0, 1):
        x, y = batch(seed)
        logits = functional.predict_on_batch(functional.initial_weights, x)
        output = tff.learning.models.BatchOutput(
            loss=functional.loss(logits, y), predictions=logits, num_examples=5
        )
        state = functional.update_metrics_state(state, y, output)
        losses.append(float(functional.loss(logits, y)))
        right += (logits.numpy().argmax(1) == y.numpy()).tolist()
    final = functional.finalize_metrics(state)
    assert float(final["loss"]) == pytest.approx(np.mean(losses))
    assert float(final["accuracy"]) == pytest.approx(np.mean(right))
    assert float(final["num_examples"]) == 10
    assert float(functional.finalize_metrics(functional.initialize_metrics_state())["loss"]) == 0


def test_models_tff_loss_takes_sample_weights():
    from privfed.models.tff import to_functional_model

    functional = to_functional_model(build_model("mlp", SHAPE, CLASSES))
    x, y = batch()
    logits = functional.predict_on_batch(functional.initial_weights, x)
    weights = tf.constant([1.0, 0, 0, 1, 0])
    chosen = float(cross_entropy(tf.gather(logits, [0, 3]), tf.gather(y, [0, 3])))
    assert float(functional.loss(logits, y, weights)) == pytest.approx(chosen)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fixed": (np.zeros(2, np.float32),)}, "non-trainable"),
        ({"loss": lambda output, label: tf.reduce_mean(tf.square(output))}, "loss is not mean cross-entropy"),
        ({"loss": lambda output, label: 2 * cross_entropy(output, label)}, "loss is not mean cross-entropy"),
        ({"output": lambda logits: logits[:, 0]}, r"logits \[batch, classes\]"),
        ({"kernel": np.zeros((64, 10), np.float64)}, "float32"),
        ({"shape": [None, None, 8, 1]}, "fixed shape"),
    ],
)
def test_models_from_tff_are_refused_with_their_reason(change, reason):
    import tensorflow_federated as tff

    from privfed.models.tff import from_functional_model

    loss = change.get("loss", cross_entropy)
    output = change.get("output", lambda logits: logits)

    @tf.function
    def predict(weights, x, training):
        (kernel, bias), _ = weights
        return output(tf.matmul(tf.reshape(x, [-1, 64]), kernel) + bias)

    functional = tff.learning.models.FunctionalModel(
        initial_weights=(
            (change.get("kernel", np.zeros((64, 10), np.float32)), np.zeros(10, np.float32)),
            change.get("fixed", ()),
        ),
        predict_on_batch_fn=predict,
        loss_fn=lambda output, label, sample_weight=None: loss(output, label),
        input_spec=(
            tf.TensorSpec(change.get("shape", [None, *SHAPE]), tf.float32),
            tf.TensorSpec([None], tf.int32),
        ),
    )
    with pytest.raises(SettingError, match=reason) as refusal:
        from_functional_model(functional)
    assert refusal.value.where == "model.name"
