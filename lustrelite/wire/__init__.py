"""Bytes <-> messages. No I/O, no clock."""
