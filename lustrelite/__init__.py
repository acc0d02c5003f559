"""LustreLite: Lustre's roles, words and recovery protocol in user space."""

__version__ = "0.1.0"
