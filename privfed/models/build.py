"""From the name in the settings to a model: the zoo, or the user's own Keras builder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from privfed.errors import SettingError
from privfed.models.functional import Model
from privfed.models.initializers import INITIALIZERS
from privfed.models.keras import keras_model
from privfed.models.zoo import ACTIVATIONS, ZOO


def build_model(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    initializer: str | None = None,
) -> Model:
    """The model ``name`` for examples of ``input_shape`` and so many classes.

    Args:
        name: A name of the zoo, or ``module:function`` (see ``privfed.models.keras``).
        input_shape: Shape of one example, without the batch axis.
        classes: How many classes the logits tell apart.
        hidden: Widths of the hidden layers, for the models that have them.
        activation: One of ``ACTIVATIONS``; the model's own when not given.
        initializer: One of ``INITIALIZERS``; the model's own when not given.

    Raises:
        SettingError: The name is unknown, an option does not go with the model, or the user's builder does not
            give a model that can be trained here.
    """
    shape = tuple(int(size) for size in input_shape)
    if classes < 2:
        raise SettingError("a classifier needs at least two classes", where="data", value=classes)
    options = {"hidden": hidden, "activation": activation, "initializer": initializer}
    given = {key: value for key, value in options.items() if value is not None}
    if ":" in name:
        if given:
            raise SettingError(
                f"{next(iter(given))} does not go with a model of your own",
                where=f"model.{next(iter(given))}",
                value=next(iter(given.values())),
                remedy=f"Set it inside {name}",
            )
        return keras_model(name, shape, classes)
    builder = ZOO.get(name)
    if builder is None:
        raise SettingError(
            "unknown model",
            where="model.name",
            value=name,
            remedy=f"Known: {', '.join(ZOO)}; or module:function for a Keras builder of your own",
        )
    taken = [key for key in inspect.signature(builder).parameters if key in options]
    for key, value in given.items():
        if key not in taken:
            raise SettingError(
                f"{name} does not take {key}",
                where=f"model.{key}",
                value=value,
                remedy=f"Remove it; {name} takes {', '.join(taken)}",
            )
    _check("activation", activation, list(ACTIVATIONS))
    _check("initializer", initializer, list(INITIALIZERS))
    if hidden is not None and (len(hidden) == 0 or min(hidden) < 1):
        raise SettingError(
            "must be widths of at least 1", where="model.hidden", value=list(hidden), remedy="For example [200]"
        )
    return builder(shape, classes, **given)


def _check(key: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise SettingError(
            f"unknown {key}", where=f"model.{key}", value=value, remedy=f"Known: {', '.join(known)}"
        )
