"""Whole runs in one process, from a seed."""

# First, see there.
import tests.simulation.no_models  # noqa: F401
