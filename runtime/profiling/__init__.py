"""Where the time of one request went, beside what the device could do."""
