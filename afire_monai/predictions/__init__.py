"""What a trained model says of radiographs, and the format that it is kept in."""
