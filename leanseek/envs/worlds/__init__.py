"""What the worlds are made of: scenes, skills and films; the tasks themselves stand one folder up."""
