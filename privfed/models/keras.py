"""The user's own Keras builder, ``module:function``, as pure functions of its weights.

The module is imported, from the current folder too, and the function is called as ``function()`` or as
``function(input_shape, classes)``; it returns an uncompiled ``tf.keras.Model`` that gives logits.

How a model with variables becomes a function of its weights: for the length of one call, every attribute of a
layer that holds a variable holds the given tensor instead. It needs nothing private to TensorFlow, works eagerly
and while tracing, and whether it caught every use of every variable is checked when the model is built.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from privfed.errors import SettingError
from privfed.models.functional import Model, VariableSpec, Weights
from privfed.models.keras_checks import check_model
from privfed.models.structure import find_dense_input, find_embedding, find_output_bias

# Keras' record of a layer's weights. It is no use of them, so it keeps the variables during a call.
_BOOKKEEPING = {"_trainable_weights", "_non_trainable_weights"}

# One lock for all models: during a call the layers hold tensors, and while building Keras' float type may differ.
_LOCK = threading.RLock()


def keras_model(name: str, input_shape: tuple[int, ...], classes: int) -> Model:
    """Build ``module:function`` and check that it can be trained federated.

    Initial weights are those that the builder itself gives, drawn with Python's and NumPy's global generators
    seeded for the call and put back after it. A builder that draws from TensorFlow's global generator, or runs
    after ``tf.keras.utils.set_random_seed``, has that seed set instead, since it cannot be put back.

    Raises:
        SettingError: At ``model.name``: there is no such function, or what it builds does not fit, has state or
            randomness of its own, or gives no logits.
    """
    builder = _Builder(name, input_shape, classes)
    pure = _PureCall(builder)
    model = Model(
        name,
        input_shape,
        classes,
        tuple(
            # Keras numbers its names through the process, so they differ from one build to the next.
            VariableSpec(f"{i}/{v.name.split('/')[-1].partition(':')[0]}", tuple(v.shape.as_list()))
            for i, v in enumerate(pure.original.trainable_variables)
        ),
        pure,
        builder.initialize,
    )
    check_model(model, pure.original)
    return replace(
        model,
        dense_input=find_dense_input(model),
        output_bias=find_output_bias(model),
        embedding=find_embedding(model),
    )


class _Builder:
    """Calls the user's function, with errors that name it."""

    def __init__(self, name: str, input_shape: tuple[int, ...], classes: int) -> None:
        self._name, self._input_shape = name, input_shape
        self._arguments = (input_shape, classes)
        self._function = _load(name)
        self._pass_arguments = self._wants_arguments()

    def _wants_arguments(self) -> bool:
        parameters = inspect.signature(self._function).parameters.values()
        required = [
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        named = [p.name for p in parameters][:2] == ["input_shape", "classes"]
        if named or (
            len(required) == 2 and all(p.kind is not p.KEYWORD_ONLY for p in parameters if p.name in required)
        ):
            return True
        if required:
            raise SettingError(
                f"the function must take (input_shape, classes) or nothing, it takes ({', '.join(required)})",
                where="model.name",
                value=self._name,
            )
        return False

    def __call__(self) -> Any:
        with _LOCK, _current_folder(), tf.init_scope():
            try:
                model = self._function(*(self._arguments if self._pass_arguments else ()))
            except SettingError:
                raise
            except Exception as error:
                raise SettingError(
                    f"the function raised {type(error).__name__}: {error}", where="model.name", value=self._name
                ) from error
            if not isinstance(model, tf.keras.Model):
                raise SettingError(
                    f"the function must return a tf.keras.Model, it returned {type(model).__name__}",
                    where="model.name",
                    value=self._name,
                )
            try:
                # Builds the layers that wait for their first input.
                model(tf.zeros((2, *self._input_shape), tf.keras.backend.floatx()), training=False)
            except Exception as error:
                raise SettingError(
                    f"the model does not take examples of shape {self._input_shape}: {str(error).splitlines()[0]}",
                    where="model.name",
                    value=self._name,
                    remedy="Build it for that shape, for example from function(input_shape, classes)",
                ) from error
        return model

    def initialize(self, rng: np.random.Generator) -> list[NDArray[np.float32]]:
        """The weights that the builder starts from, the same for the same state of ``rng``."""
        seed = int(rng.integers(2**31))
        with _LOCK:
            first, second = self._seeded(seed), self._seeded(seed)
            if all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
                return first
            python, numpy = random.getstate(), np.random.get_state()
            try:
                tf.keras.utils.set_random_seed(seed)
                return _values(self())
            finally:
                random.setstate(python)
                np.random.set_state(numpy)

    def _seeded(self, seed: int) -> list[NDArray[np.float32]]:
        python, numpy = random.getstate(), np.random.get_state()
        try:
            random.seed(seed)
            np.random.seed(seed)
            return _values(self())
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _PureCall:
    """``(weights, x) -> logits`` of a Keras model, without touching its variables."""

    def __init__(self, builder: _Builder) -> None:
        self._builder = builder
        self.original = builder()
        self._twins = {tf.float32: self.original}

    def __call__(self, weights: Weights, x: Any) -> Any:
        tensors = [tf.convert_to_tensor(w) for w in weights]
        with _LOCK:
            model = self._of_type(tensors[0].dtype)
            with _substituted(model, tensors):
                return model(tf.convert_to_tensor(x), training=False)

    def _of_type(self, dtype: Any) -> Any:
        """Keras casts inputs to the type a layer was built for, so another type needs another model."""
        if dtype not in self._twins:
            before = tf.keras.backend.floatx()
            tf.keras.backend.set_floatx(dtype.name)
            try:
                twin = self._builder()
            finally:
                tf.keras.backend.set_floatx(before)
            types = {v.dtype.base_dtype for v in twin.trainable_variables}
            if types != {dtype}:
                raise TypeError(
                    f"the Keras model cannot compute in {dtype.name}: it fixes the type of its weights to "
                    f"{', '.join(sorted(t.name for t in types))}; take dtype= out of its layers"
                )
            self._twins[dtype] = twin
        return self._twins[dtype]


@contextlib.contextmanager
def _substituted(model: Any, tensors: Sequence[Any]) -> Iterator[None]:
    """For the length of a call, put ``tensors`` where the layers of ``model`` hold its trainable variables."""
    variables = model.trainable_variables
    if len(variables) != len(tensors):
        raise ValueError(f"the Keras model has {len(variables)} trainable variables, got {len(tensors)} tensors")
    given = {id(v): t for v, t in zip(variables, tensors, strict=True)}
    undo: list[Callable[[], None]] = []
    seen: set[int] = set()
    try:
        for module in (model, *model.submodules):
            for key, value in list(vars(module).items()):
                if key not in _BOOKKEEPING:
                    # Past __setattr__, which would register the tensor with Keras.
                    _swap(vars(module), key, value, given, undo, seen)
        yield
    finally:
        for step in reversed(undo):
            step()


def _swap(
    holder: Any, key: Any, value: Any, given: dict[int, Any], undo: list[Callable[[], None]], seen: set[int]
) -> None:
    if id(value) in given:
        undo.append(lambda: holder.__setitem__(key, value))
        holder[key] = given[id(value)]
    elif isinstance(value, list | dict) and id(value) not in seen:
        seen.add(id(value))
        for inner, item in list(enumerate(value) if isinstance(value, list) else value.items()):
            _swap(value, inner, item, given, undo, seen)


def _values(model: Any) -> list[NDArray[np.float32]]:
    return [v.numpy().astype(np.float32) for v in model.trainable_variables]


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Imports find modules of the current folder, also those that the builder imports when called."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise SettingError("a model of your own is written module:function", where="model.name", value=name)
    with _current_folder():
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise SettingError(
                    f"module {module_name} needs a module that is not installed: {error.name}",
                    where="model.name",
                    value=name,
                ) from error
            raise SettingError(
                f"there is no module {error.name}",
                where="model.name",
                value=name,
                remedy=f"Looked in {os.getcwd()} and among the installed packages",
            ) from None
        except Exception as error:
            raise SettingError(
                f"module {module_name} fails on import: {type(error).__name__}: {error}",
                where="model.name",
                value=name,
            ) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise SettingError(f"module {module_name} has no function {function_name}", where="model.name", value=name)
    if not callable(function):
        raise SettingError(
            f"{function_name} in {module_name} is a {type(function).__name__}, not a function",
            where="model.name",
            value=name,
            remedy="Name a function that builds the model",
        )
    return function  # type: ignore[no-any-return]  # the user's module is untyped
