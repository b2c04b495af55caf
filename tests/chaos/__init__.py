"""Kill fits at random instants, and check that no answer is paid for twice. See README.md."""
