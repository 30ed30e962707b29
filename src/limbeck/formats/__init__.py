"""Number formats of few bits: how a tensor is rounded, kept as codes and scales, and read back."""
