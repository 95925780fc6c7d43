"""Bytes in motion between storage and the reactor; nothing here knows HTTP."""
