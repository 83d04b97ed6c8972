"""What to cut and the cutting: spectra, metrics, allocators, pruners."""
