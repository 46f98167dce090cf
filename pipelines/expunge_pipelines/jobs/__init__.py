"""Jobs of the commands: each returns its document, and none of them prints."""
