"""HTTP in front of the storage, one module a door."""
