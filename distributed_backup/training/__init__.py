"""The rooms that know synalinks: one fit, its state, and how it continues at a position."""
