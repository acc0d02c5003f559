"""Every hard decision of recovery, as plain synchronous classes: no I/O, no clock; time is an argument."""
