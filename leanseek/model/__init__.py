"""What the network computes: knows nothing of files, engines or losses."""
