"""Files of pictures and sound, in and out."""
