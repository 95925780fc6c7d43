"""HTTP field values and targets: bytes in, a plan out. Pure, and imports nothing of ours."""
