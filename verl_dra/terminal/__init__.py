"""What is shown on a terminal, and the colours of pictures."""
