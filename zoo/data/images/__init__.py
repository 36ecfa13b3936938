"""Pictures: from files to what image towers read."""
