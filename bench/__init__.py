"""Fixed workloads. `python -m bench NAME...` prints one JSON line each; without a name it lists them."""
