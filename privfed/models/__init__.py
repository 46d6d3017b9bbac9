"""Models as pure functions of a flat weight vector: the zoo, the user's own Keras builders, TFF's."""
