"""The command line: lustrelite, llctl, mkfs.lustrelite, tunefs.lustrelite. Errors are one line that says what to do.

At the top of a module of commands stands only what help and completion need. What takes long to import (a client, the
code of servers, rich, asyncio) is imported in the function that uses it; tests/unit/test_cli_start.py looks.
"""
