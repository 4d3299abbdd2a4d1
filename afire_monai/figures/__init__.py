"""What an encoder has learned, in pictures."""
