"""What a transformer is shown besides noise: text, pictures, frames that hold."""
