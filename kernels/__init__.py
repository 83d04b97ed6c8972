"""The session that opens a package, and (later) the kernels that run it sparse."""
