"""What the world reads: cards from templates, numbers from result files, folders to the Hub."""
