"""The command line: lustrelite, llctl, mkfs.lustrelite, tunefs.lustrelite. Errors are one line that says what to do."""
