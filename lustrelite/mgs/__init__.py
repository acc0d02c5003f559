"""The management server: which targets there are, where they run, and the permanent parameters."""
