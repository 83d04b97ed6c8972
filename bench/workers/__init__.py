"""Worker scripts, one an engine, run by path in the engine's own interpreter (stdlib, numpy and the engine only)."""
