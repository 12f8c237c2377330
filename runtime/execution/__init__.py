"""Applied to a finished module from outside: how it runs, and where its weights are."""
