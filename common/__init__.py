"""What several of the programs import."""
