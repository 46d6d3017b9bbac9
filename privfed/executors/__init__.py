"""Where client work is computed: on this machine (``local``), or on TFF's runtime as the reference (``tff``)."""
