"""Random calls, files and configs: a right answer or a clear error, never anything else. See `examples` in base.py."""
