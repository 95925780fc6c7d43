"""The operations on stored files, for every door. No request of any protocol is known here."""
