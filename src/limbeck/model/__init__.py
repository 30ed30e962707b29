"""Models as roles: opening by reference, anatomy of each family, taps."""
