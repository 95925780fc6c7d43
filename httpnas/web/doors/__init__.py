"""The doors: one module for each dialect, which parses, calls an operation and answers."""
