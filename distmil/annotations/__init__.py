"""What people drew on a slide: files to areas in level-0 pixels."""
