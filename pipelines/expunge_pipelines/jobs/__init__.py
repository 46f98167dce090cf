"""What each command does, without printing; each job returns its document."""
