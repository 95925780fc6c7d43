"""What is true on disk: blocking POSIX calls, with no word of Twisted or HTTP."""
