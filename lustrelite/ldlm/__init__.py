"""The lock manager's decisions, as plain synchronous classes: no I/O, no clock; time is an argument."""
