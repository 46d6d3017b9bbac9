"""What a server offers and a client makes of it: the same parts of a round, each side from the same settings."""

from __future__ import annotations

from typing import Any

from privfed.config import Data, Settings
from privfed.errors import PrivFedError, SettingError
from privfed.network.errors import DeclinedError
from privfed.settings_file import resolve_settings


def check_servable(settings: Settings) -> None:
    """Refuse settings that a network cannot carry.

    Raises:
        SettingError: One of them is for simulations.
    """
    training, masking = settings.training, settings.secure_aggregation
    wrong = {
        "training.algorithm": (
            training.algorithm == "scaffold",
            training.algorithm,
            "needs each client's control variate to outlive its process and a lost round",
        ),
        "training.weighted": (
            training.weighted,
            True,
            "weighs by the numbers of examples of all, which are private",
        ),
        "secure_aggregation.mode": (
            masking.mode in ("ring", "bfv"),
            masking.mode,
            "hides nothing from the server"
            if masking.mode == "ring"
            else "needs a key holder beside server and clients, and no message to one is defined",
        ),
        "audit.canaries": (bool(settings.audit.canaries), settings.audit.canaries, "makes clients up"),
        "executor": (settings.executor != "local", settings.executor, "trains everybody in one place"),
    }
    for where, (refused, value, why) in wrong.items():
        if refused:
            raise SettingError(
                f"is for simulations: it {why}", where=where, value=value, remedy="Change it to serve real clients"
            )


def offered(settings: Settings, noise_multiplier: float | None, clients: int) -> dict[str, Any]:
    """The settings as clients are to see them: with the noise, and without where the server has its data."""
    privacy = settings.privacy
    if noise_multiplier is not None:
        privacy = privacy.model_copy(update={"epsilon": None, "noise_multiplier": noise_multiplier})
    changed = settings.model_copy(update={"privacy": privacy, "data": Data(clients=clients)})
    values: dict[str, Any] = changed.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in values.items() if name not in ("attacks", "audit")}


def accepted(values: dict[str, Any]) -> Settings:
    """The settings of an offer, checked as any.

    Raises:
        DeclinedError: They are not such settings, or not for real clients.
    """
    try:
        settings = resolve_settings(values)
        check_servable(settings)
    except PrivFedError as error:
        raise DeclinedError("plan", f"the plan's settings: {error}") from None
    if ":" in settings.model.name:
        raise DeclinedError("plan", "the plan's model is code, which this client does not run")
    return settings
