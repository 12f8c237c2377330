"""What is asked for. Nothing here imports torch."""
