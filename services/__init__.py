"""The daemons: arguments -> objects -> run. Installed as `lustrelite.services`."""
