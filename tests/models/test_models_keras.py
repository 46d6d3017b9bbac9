from __future__ import annotations

import random
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from privfed.errors import SettingError
from privfed.models.build import build_model
from privfed.models.functional import cross_entropy

SHAPE, CLASSES = (6, 5, 1), 4

LAYERS = """
    import tensorflow as tf
    L = tf.keras.layers
    def sequential(input_shape, classes, *middle):
        return tf.keras.Sequential([tf.keras.Input(input_shape), *middle, L.Dense(classes)])
"""

GOOD = {
    "dense": (
        """
        def build():
            return sequential((6, 5, 1), 4, L.Flatten(), L.Dense(7, "relu"))
        """,
        (0, 1),
        3,
    ),
    "linear": (
        """
        def build(input_shape, classes):
            return sequential(input_shape, classes, L.Reshape((30,)))
        """,
        (0, 1),
        1,
    ),
    "permuted": (  # a dense layer, but on the pixels in another order
        """
        def build(shape, number):
            return sequential(shape, number, L.Permute((2, 1, 3)), L.Flatten())
        """,
        None,
        1,
    ),
    "rescaled": (  # a dense layer, but not on the raw input
        """
        def build(shape, number):
            return sequential(shape, number, L.Rescaling(2.0), L.Flatten())
        """,
        None,
        1,
    ),
    "convolution": (
        """
        def build(input_shape, classes):
            return sequential(input_shape, classes, L.Conv2D(3, 3, activation="relu"), L.GroupNormalization(3),
                              L.MaxPooling2D(2), L.Flatten())
        """,
        None,
        5,
    ),
    "no_bias": (
        """
        def build(input_shape, classes):
            return tf.keras.Sequential([L.Flatten(), L.Dense(classes, use_bias=False)])
        """,
        None,
        None,
    ),
    "rows": (
        """
        def build(input_shape, classes):
            return sequential(input_shape, classes, L.Reshape(input_shape[:2]), L.LSTM(3))
        """,
        None,
        4,
    ),
    "subclassed": (
        """
        class Net(tf.keras.Model):
            def __init__(self, classes):
                super().__init__()
                self.flat = L.Flatten()
                self.hidden = [L.Dense(5, "tanh"), L.LayerNormalization()]
                self.free = {"scale": self.add_weight(shape=(5,), initializer="ones", name="scale")}
                self.out = L.Dense(classes)
            def call(self, x, training=False):
                h = self.flat(x)
                for layer in self.hidden:
                    h = layer(h)
                return self.out(h * self.free["scale"])
        def build(input_shape, classes):
            return Net(classes)
        """,
        "first",
        "last",
    ),
    "nested": (
        """
        def build(input_shape, classes):
            x = tf.keras.Input(input_shape)
            block = tf.keras.Sequential([L.Conv2D(2, 3, padding="same", activation="relu")])
            h = L.Concatenate()([block(x), x])
            return tf.keras.Model(x, L.Dense(classes)(L.Flatten()(h)))
        """,
        None,
        3,
    ),
}

BAD = {
    "softmax": ("L.Flatten(), L.Dense(classes, 'softmax')", "ends in a softmax"),
    "softmax_layer": ("L.Flatten(), L.Dense(classes), L.Softmax()", "ends in a softmax"),
    "sigmoid": ("L.Flatten(), L.Dense(classes, 'sigmoid')", "ends in a sigmoid"),
    "batch_norm": ("L.Conv2D(2, 3), L.BatchNormalization(), L.Flatten(), L.Dense(classes)", "GroupNormalization"),
    "frozen": ("L.Flatten(), L.Dense(3, trainable=False), L.Dense(classes)", "does not move by gradients"),
    "dropout": ("L.Flatten(), L.Dropout(0.5), L.Dense(classes)", "random numbers"),
    "noise": ("L.GaussianNoise(0.1), L.Flatten(), L.Dense(classes)", "random numbers"),
    "wrong_classes": ("L.Flatten(), L.Dense(classes + 1)", r"logits of shape \[batch, 4\].*\[batch, 5\]"),
    "unflattened": ("L.Dense(classes)", r"logits of shape \[batch, 4\]"),
    "regularizer": ("L.Flatten(), L.Dense(classes, kernel_regularizer='l2')", "losses of its own"),
    "no_weights": ("L.Flatten(), L.Lambda(lambda x: x[:, :4])", "no trainable weights"),
    "half": ("L.Flatten(), L.Dense(classes, dtype='float16')", "must be float32"),
    "in_training": (
        "L.Flatten(), L.Dense(classes), type('Loud', (L.Layer,), "
        "{'call': lambda self, x, training=False: 2 * x if training else x})()",
        "something else in training",
    ),
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder; it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    names = []

    def write(text: str, name: str = "") -> str:
        name = name or f"user_module_{tmp_path.name.replace('-', '_')}_{len(names)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(LAYERS) + textwrap.dedent(text))
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def _build(module, text):
    return build_model(f"{module(text)}:build", SHAPE, CLASSES)


@pytest.mark.parametrize("case", GOOD)
def test_keras_model_equals_its_pure_function(case, module):
    text, dense_input, output_bias = GOOD[case]
    name = module(text)
    model = build_model(f"{name}:build", SHAPE, CLASSES)
    keras = sys.modules[name].build(*([SHAPE, CLASSES] if case != "dense" else []))
    x = np.random.default_rng(1).uniform(0, 1, (3, *SHAPE)).astype(np.float32)
    y = np.array([0, 3, 1], np.int32)
    keras(x)
    assert [v.shape for v in keras.trainable_variables] == [spec.shape for spec in model.variables]
    vector = model.initial_vector(0) + np.random.default_rng(2).normal(0, 0.1, model.dimension).astype(np.float32)
    weights = model.unflatten(vector)
    for variable, value in zip(keras.trainable_variables, weights, strict=True):
        variable.assign(value)

    with tf.GradientTape() as tape:
        loss = cross_entropy(keras(x, training=True), tf.constant(y))
    expected = tape.gradient(loss, keras.trainable_variables)

    def pure(vector, x):
        with tf.GradientTape() as tape:
            tape.watch(vector)
            logits = model.logits(model.unflatten(vector), x)
            loss = cross_entropy(logits, tf.constant(y))
        return logits, tape.gradient(loss, vector)

    for run in (pure, tf.function(pure)):
        logits, gradient = run(tf.constant(vector), tf.constant(x))
        np.testing.assert_allclose(logits, keras(x), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient, model.flatten([g.numpy() for g in expected]), rtol=1e-3, atol=1e-5)

    if dense_input == "first":
        shapes = [spec.shape for spec in model.variables]
        assert model.dense_input is not None
        assert [shapes[i] for i in model.dense_input] == [(30, 5), (5,)]
        assert shapes[model.output_bias] == (CLASSES,)
    else:
        assert model.dense_input == dense_input
        assert model.output_bias == output_bias


def test_keras_model_computes_in_float64(module):
    model = _build(module, GOOD["convolution"][0])
    weights = model.unflatten(model.initial_vector(3))
    x = np.random.default_rng(1).uniform(0, 1, (2, *SHAPE))
    single = model.logits(weights, x.astype(np.float32)).numpy()
    double = model.logits([w.astype(np.float64) for w in weights], x)
    assert double.dtype == tf.float64
    np.testing.assert_allclose(double, single, rtol=1e-4, atol=1e-5)
    assert tf.keras.backend.floatx() == "float32"

    @tf.function
    def traced(x):
        return model.logits([w.astype(np.float64) for w in weights], x)

    np.testing.assert_allclose(traced(x), double, rtol=1e-12)


def test_keras_variables_are_back_after_the_call_and_after_a_failed_one(module):
    model = _build(module, GOOD["subclassed"][0])
    keras = model.logits.original
    before = [v.numpy() for v in keras.trainable_variables]
    weights = [np.full(spec.shape, 0.5, np.float32) for spec in model.variables]
    model.logits(weights, np.zeros((2, *SHAPE), np.float32))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        model.logits([w[:1] for w in weights], np.zeros((2, *SHAPE), np.float32))
    with pytest.raises(ValueError, match="trainable variables"):
        model.logits(weights[:-1], np.zeros((2, *SHAPE), np.float32))
    assert all(isinstance(v, tf.Variable) for v in (keras.out.kernel, keras.hidden[0].bias, keras.free["scale"]))
    for value, variable in zip(before, keras.trainable_variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_keras_initial_weights_follow_the_seed_and_leave_the_global_generators_alone(module):
    model = _build(module, GOOD["dense"][0])
    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    first = model.initial_vector(7)
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()
    random.random()
    np.testing.assert_array_equal(first, model.initial_vector(7))
    assert (first != model.initial_vector(8)).any()


def test_keras_initial_weights_are_repeatable_when_drawn_from_tensorflow_generator(module):
    model = _build(
        module,
        """
        def build(input_shape, classes):
            return tf.keras.Sequential([tf.keras.Input(input_shape), L.Flatten(), L.Dense(
                classes, kernel_initializer=lambda shape, dtype=None: tf.random.normal(shape, dtype=dtype))])
        """,
    )
    np.testing.assert_array_equal(model.initial_vector(7), model.initial_vector(7))
    assert (model.initial_vector(7) != model.initial_vector(8)).any()


@pytest.mark.parametrize("case", BAD)
def test_keras_model_is_refused_with_its_reason(case, module):
    layers, reason = BAD[case]
    text = f"""
        def build(input_shape, classes):
            return tf.keras.Sequential([tf.keras.Input(input_shape), {layers}])
    """
    with pytest.raises(SettingError, match=reason) as refusal:
        _build(module, text)
    assert refusal.value.where == "model.name"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_here:build", "there is no module no_such_module_here"),
        ("no_such.inner:build", "there is no module no_such"),
        ("{}:missing", "has no function missing"),
        ("{}:NUMBER", "NUMBER .* is a int, not a function"),
        ("{}:not_a_model", "must return a tf.keras.Model, it returned str"),
        ("{}:raises", "raised KeyError"),
        ("{}:wants_more", r"must take \(input_shape, classes\) or nothing, it takes \(depth\)"),
        ("{}:other_shape", r"does not take examples of shape \(6, 5, 1\)"),
        (":build", "written module:function"),
        ("module:", "written module:function"),
    ],
)
def test_keras_builder_that_cannot_be_called_is_refused(name, reason, module):
    name = name.format(
        module(
            """
            NUMBER = 3
            def not_a_model(): return "model"
            def raises(): return {}["layers"]
            def wants_more(depth): return sequential((6, 5, 1), 4, L.Flatten())
            def other_shape(): return sequential((7, 7, 1), 4, L.Flatten())
            """
        )
    )
    with pytest.raises(SettingError, match=reason) as refusal:
        build_model(name, SHAPE, CLASSES)
    assert refusal.value.where == "model.name"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_package_here", "needs a module that is not installed: no_such_package_here"),
        ("1 / 0", "fails on import: ZeroDivisionError"),
    ],
)
def test_keras_module_that_fails_on_import_is_refused(text, reason, module):
    name = module("")
    with open(f"{name}.py", "a") as file:
        file.write(text)
    with pytest.raises(SettingError, match=reason):
        build_model(f"{name}:build", SHAPE, CLASSES)


def test_keras_current_folder_is_on_the_path_only_meanwhile(module):
    before = list(sys.path)
    _build(module, GOOD["linear"][0])
    assert sys.path == before


def test_keras_builder_with_defaults_is_called_without_arguments(module):
    text = """
        def build(width=3, depth=2):
            assert (width, depth) == (3, 2)
            return sequential((6, 5, 1), 4, L.Flatten(), L.Dense(width))
    """
    assert _build(module, text).variables[0].shape == (30, 3)
