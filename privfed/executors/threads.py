"""How TensorFlow shares the cores: operations on one thread each, clients beside each other.

Small models gain nothing from threads inside an operation, and a client's result then depends neither on who
trains beside it nor on how many threads there are.
"""

from __future__ import annotations

import os

import tensorflow as tf


def configure_threads() -> bool:
    """Set TensorFlow up for parallelism across clients; call it before anything else uses TensorFlow.

    Returns whether operations now run on one thread each: a runtime that is already up keeps what it has, which
    costs speed only. Grappler's arithmetic rewrites are switched off in either case: of two threads in one
    rewritten graph, one can meet the other's temporary variable (``AlreadyExistsError … AddOpsRewrite …``).
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(available_cores())
    except RuntimeError:  # the runtime is up; its thread pools are fixed
        return bool(tf.config.threading.get_intra_op_parallelism_threads() == 1)
    return True


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def training_device() -> str:
    """The first GPU that TensorFlow sees, or else the CPU."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
