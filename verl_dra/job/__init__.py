"""What is found out about a run where it will run, before it starts."""
